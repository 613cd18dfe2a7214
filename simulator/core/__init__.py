"""The ground floor: errors, random streams, settings, files, YAML."""
