"""The sections of a scenario, one per file: their keys and valid values, in the units of the YAML. `scenario.py` combines them."""
