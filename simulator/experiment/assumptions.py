"""Notes on the traces and captions of a scenario, one line each."""

import os
from collections import Counter
from collections.abc import Iterable

from simulator.experiment.images import ImageScorer
from simulator.experiment.scenario import Scenario
from simulator.experiment.schema.network import TraceNetwork, link_trace
from simulator.experiment.schema.prompts import PromptList, ScenePrompts
from simulator.experiment.schema.workload import TraceArrivals


def trace_notes(scenarios: Iterable[Scenario]) -> list[str]:
    """Return one line per trace: its files, format and the assumptions of its reader."""
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


def familiar_captions(scenarios: Iterable[Scenario], scorer: ImageScorer) -> list[str]:
    """Return one line per set of drawn captions that training, or the images that sets are compared with, knows."""
    drawn = dict.fromkeys(one.prompts for one in scenarios if isinstance(one.prompts, ScenePrompts))
    found = {
        f"prompts.seed {one.seed}: {what}: the quality of other images may be lower": None
        for one in drawn
        if (what := scorer.familiar(one.seed, one.skip, one.count))
    }
    return list(found)


def repeated_captions(scenarios: Iterable[Scenario]) -> list[str]:
    """Return one line per list or file of captions with repetitions, such as a table with one row per question."""
    notes = []
    for captions in dict.fromkeys(one.prompts.captions for one in scenarios if isinstance(one.prompts, PromptList)):
        counts = Counter(captions)
        if len(counts) < len(captions):
            ((caption, times),) = counts.most_common(1)
            notes.append(
                f"{len(captions) - len(counts)} of {len(captions)} captions are repetitions ({caption[:60]!r} occurs {times} times): "
                "each has a different seed"
            )
    return notes
