"""Published quality metrics of a scenario's images, computed by networks that the user names (`models/quality/foreign.py`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from models import scenes
from models.images import UNREADABLE, rgb_of
from models.quality import foreign
from models.quality.judges import REFERENCE_IMAGES, REFERENCE_SEED
from simulator.core.errors import CiarSimError
from simulator.core.files import open_file
from simulator.experiment.images import CHANGE_IMAGES
from simulator.experiment.plan import Plan, captions_of
from simulator.experiment.scenario import Case, Scenario
from simulator.experiment.search import search_thresholds
from simulator.experiment.sweep import expand
from simulator.protocol.cache import RecordingSource
from simulator.protocol.pairs import PairSpec, pair_manifest
from simulator.results.columns import with_ends
from simulator.results.statistics import student_interval

FEWEST = 10  # generated or real images; the interval of f1 needs halves of more than three images
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Networks:
    """Files and folders of the networks; None omits the metric."""

    inception: Path | None = None
    vgg: Path | None = None
    clip: Path | None = None
    hpsv2: Path | None = None


def score_images(
    scenario: Scenario,
    source: RecordingSource,
    captions: Callable[[int, int], list[str]],
    networks: Networks,
    real: Path | None,
    prefix: str,
    torch_device: str,
    progress: Callable[[str, int, int], None],
) -> pd.DataFrame:
    """Return one row per distinct set of images: method, swept settings, images, and `fid`, `f1`, `clip`, `hpsv2` with `_lo` and `_hi`.

    Args:
        scenario: scenario whose images are scored.
        source: source of the sessions' recordings.
        captions: the pair's captions by (seed, count), from which prompts are drawn.
        networks: files of the metrics' networks.
        real: folder of real images for fid and f1; None: renders of scenes.
        prefix: text before each caption for clip.
        torch_device: torch device that the networks run on.
        progress: called with (stage, done, total).

    Raises:
        CiarSimError: a network or folder is invalid, or it cannot score the scenario's images; both are checked before an image is made.
    """
    pair, manifest = scenario.pair, pair_manifest(scenario.pair)
    if not any((networks.inception, networks.vgg, networks.clip, networks.hpsv2)):
        raise CiarSimError("name at least one network: --inception, --vgg, --clip or --hpsv2")
    if manifest.statistics is not None:
        raise CiarSimError(f"the pair {manifest.name} makes no images: its sessions come from published figures")
    if isinstance(pair, PairSpec) and pair.backbone.classes and (networks.clip or networks.hpsv2):
        raise CiarSimError(
            f"clip and hpsv2 read captions, and the prompts of {manifest.name} are class labels; use fid or f1"
        )
    swept = expand(scenario)
    if networks.inception or networks.vgg:
        _refuse_few(swept, captions)
        if real is None and (manifest.subject, manifest.image_size) != ("scenes", scenes.IMAGE_SIZE):
            raise CiarSimError("fid and f1 need real images to compare with: name their folder by --real")
    nets = {
        name: foreign.FeatureNet(path, torch_device)
        for name, path in (("fid", networks.inception), ("f1", networks.vgg))
        if path
    }
    clips = {
        name: foreign.load_clip(path) for name, path in (("clip", networks.clip), ("hpsv2", networks.hpsv2)) if path
    }
    references = _real_images(real) if nets and real else []
    cases, _ = search_thresholds(swept, manifest, captions, source)
    plan = Plan(cases, manifest, captions)
    plan.record(source, dict.fromkeys(key for case in cases for key in plan.of_case[case.index]))
    different = {tuple(plan.of_case[case.index]): case for case in reversed(cases)}  # keeps the first of equal cases
    rows = []
    for done, case in enumerate(reversed(different.values())):
        progress("scoring images", done, len(different))
        images = [recording.image for recording in plan.recorded(case)]
        if nets and not references:
            references = [scenes.image(REFERENCE_SEED, index) for index in range(REFERENCE_IMAGES)]
        changed = {path: value for path, value in case.swept.items() if path.startswith(CHANGE_IMAGES)}
        row: dict[str, object] = {"method": case.method.label, **changed, "images": len(images)}
        for name, net in nets.items():
            metric = foreign.fid if name == "fid" else foreign.f1
            row |= with_ends(name, metric(net, images, references))
        for name, clip in clips.items():
            scores = foreign.clip_scores(clip, images, plan.captions[case.index], prefix if name == "clip" else "")
            row |= with_ends(name, student_interval(scores))
        rows.append(row)
    progress("scoring images", len(different), len(different))
    return pd.DataFrame(rows)


def _refuse_few(cases: Sequence[Case], captions: Callable[[int, int], list[str]]) -> None:
    """Raise CiarSimError if a case has too few prompts for fid and f1."""
    for case in cases:
        if (count := len(captions_of(case.scenario, captions))) < FEWEST:
            raise CiarSimError(f"{case.method.label}: fid and f1 need at least {FEWEST} images, prompts are {count}")


def _real_images(folder: Path) -> list[np.ndarray]:
    """Return the images of a folder in order of their names, each uint8 [H, W, 3], all of one size."""
    found = []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES):
        try:
            with open_file(path) as file, Image.open(file) as image:
                found.append(np.asarray(rgb_of(image)))
        except UNREADABLE as error:
            raise CiarSimError(f"{path}: not an image that can be read: {error}") from None
        if found[-1].shape != found[0].shape:
            (height, width), (first_height, first_width) = found[-1].shape[:2], found[0].shape[:2]
            raise CiarSimError(
                f"{path}: {width} x {height} pixels, the folder's first image has {first_width} x {first_height}"
            )
    if len(found) < FEWEST:
        raise CiarSimError(f"{folder}: {len(found)} images ({', '.join(_SUFFIXES)}), at least {FEWEST} are needed")
    return found
