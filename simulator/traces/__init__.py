"""Network and arrival traces: readers of published formats, a common data structure, generators."""
