"""Execution of scenarios: from a scenario file to a run folder."""
