"""Answers from many simulated cases: which method, up to which load, from which round trip on, this run against that one."""
