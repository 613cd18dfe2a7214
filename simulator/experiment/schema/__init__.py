"""The sections of a scenario, a file each: what may stand there, in the units of the YAML. `scenario.py` puts them together."""
