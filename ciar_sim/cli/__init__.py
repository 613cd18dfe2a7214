"""The command line. Each file combines the other packages for its commands and imports them when a command runs."""
