"""Network and arrival traces: what other people's files say, in one form; and traces of this project's own generators."""
