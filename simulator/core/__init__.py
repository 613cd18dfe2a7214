"""Basics that all rooms use: errors, random streams, settings, files, YAML."""
