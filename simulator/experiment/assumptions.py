"""Assumptions that the readers of a scenario's traces made, a line for each file."""

import os
from collections.abc import Iterable

from simulator.experiment.scenario import Scenario
from simulator.experiment.schema.network import TraceNetwork, link_trace
from simulator.experiment.schema.workload import TraceArrivals


def trace_notes(scenarios: Iterable[Scenario]) -> list[str]:
    """A line for every trace file that the scenarios follow: its format, and the assumptions of its reader."""
    found: dict[str, None] = {}
    for scenario in scenarios:
        for path in scenario.paths.values():
            if isinstance(path, TraceNetwork):
                choice = path.choice()
                trace = link_trace(choice)
                names = ", ".join(os.path.basename(file) for file in choice.files)
                found[f"{names} ({trace.format}): {'; '.join(trace.notes) or 'nothing assumed'}"] = None
        arrivals = scenario.workload.arrivals
        if isinstance(arrivals, TraceArrivals):
            _, notes = arrivals.times()
            found[f"{os.path.basename(arrivals.trace)}: {'; '.join(notes) or 'nothing assumed'}"] = None
    return list(found)
