"""The images of a run that are kept, and quality columns that need no scorer."""

from collections.abc import Mapping, Sequence

import numpy as np

from simulator.experiment.plan import Plan
from simulator.experiment.scenario import Case
from simulator.protocol.recording import FROM_DEVICE, SCORES, Recording
from simulator.results.folder import Picture

PICTURED_PROMPTS = 4  # prompts whose images are kept in the run folder


def quality_columns(recordings: Sequence[Recording], reference: Sequence[Recording]) -> dict[str, np.ndarray]:
    """Quality per distinct image: cloud_nll (nats per token), cloud_greedy_pct and base_greedy_pct (see results.COLUMNS)."""
    return {
        "image": np.arange(len(recordings)),
        "cloud_nll": np.array([float(r.nll.mean(dtype=np.float64)) for r in recordings]),
        "cloud_greedy_pct": np.array([100.0 * float(np.mean(r.tokens == r.argmax)) for r in recordings]),
        "base_greedy_pct": np.array(
            [100.0 * float(np.mean(r.tokens == b.tokens)) for r, b in zip(recordings, reference, strict=True)]
        ),
    }


_CHANGES_IMAGES = ("methods.", "decoding.", "prompts.", "pair", "seed")  # swept paths that change recordings


def _pictures(cases: Sequence[Case], plan: Plan, recordings: Mapping[str, Recording], grid: int) -> list[Picture]:
    """Images of the first prompts, once per distinct set of recordings, with the device's scores and who decided each token."""
    pictures: list[Picture] = []
    seen: set[tuple[str, ...]] = set()
    for case in cases:
        keys = plan.of_case[case.index][:PICTURED_PROMPTS]
        if tuple(keys) in seen:
            continue
        seen.add(tuple(keys))
        own = [
            f"{path.rpartition('.')[2]}={value}"
            for path, value in case.swept.items()
            if path.startswith(_CHANGES_IMAGES)
        ]
        label = " ".join([case.method.label, *(text for text in own if text not in case.method.label)])
        for prompt, (key, text) in enumerate(zip(keys, plan.captions[case.index], strict=False)):
            recording = recordings[key]
            pictures.append(Picture(label, prompt, text, "image", recording.image))
            if case.method.name == "ciar":
                scores = recording.scores[:, SCORES.index("u")].reshape(grid, grid)
                decided = (recording.decided_by == FROM_DEVICE).astype(np.float32).reshape(grid, grid)
                pictures.append(Picture(label, prompt, text, "uncertainty", scores))
                pictures.append(Picture(label, prompt, text, "decided", decided))
    return pictures
