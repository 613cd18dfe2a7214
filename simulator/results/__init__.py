"""Numbers from records: columns, statistics, tables, timeline, the run folder."""
