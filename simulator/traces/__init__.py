"""Network and arrival traces: readers of published formats, one form for all of them, generators."""
