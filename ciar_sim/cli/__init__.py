"""The command line. Each file composes the rooms for its commands and imports them when a command runs."""
