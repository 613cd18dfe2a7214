"""Results of a run from its records: columns, statistics, tables, timeline, run folder."""
