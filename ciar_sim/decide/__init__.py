"""Decisions from many simulated cases: recommended method, capacity, regime map, comparison of runs, exports."""
