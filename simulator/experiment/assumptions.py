"""Assumptions that the readers of a scenario's traces made, a line for each file."""

import os
from collections.abc import Iterable
from itertools import chain

from simulator.experiment.scenario import Scenario
from simulator.experiment.schema.network import TraceNetwork, link_trace, paths_of
from simulator.experiment.schema.workload import FleetWorkload, TraceArrivals


def trace_notes(scenarios: Iterable[Scenario]) -> list[str]:
    """A line for every trace file that the scenarios follow: its format, and the assumptions of its reader."""
    found: dict[str, None] = {}
    for scenario in scenarios:
        workload = scenario.workload
        fleet = workload.fleet if isinstance(workload, FleetWorkload) else ()
        for network in chain.from_iterable(map(paths_of, (scenario.network, *(kind.network for kind in fleet)))):
            if isinstance(network, TraceNetwork):
                choice = network.choice()
                trace = link_trace(choice)
                names = ", ".join(os.path.basename(file) for file in choice.files)
                found[f"{names} ({trace.format}): {'; '.join(trace.notes) or 'nothing assumed'}"] = None
        if isinstance(workload, FleetWorkload) and isinstance(workload.arrivals, TraceArrivals):
            _, notes = workload.arrivals.times()
            found[f"{os.path.basename(workload.arrivals.trace)}: {'; '.join(notes) or 'nothing assumed'}"] = None
    return list(found)
