"""Published quality metrics of a scenario's images, computed by networks that the user names (`models/quality/foreign.py`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
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
from simulator.protocol.pairs import PairManifest, PairSpec, pair_manifest
from simulator.results.columns import with_ends
from simulator.results.statistics import Interval, student_interval

FEWEST = 10  # generated or real images; the interval of f1 needs halves of more than three images
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Networks:
    """Files and folders of the networks, None omits the metric, and what they read besides the images.

    Attributes:
        inception: network of fid.
        vgg: network of f1.
        clip: network of clip.
        hpsv2: network of hpsv2.
        real: folder of real images for fid and f1; None: renders of scenes.
        prefix: text before each caption for clip.
    """

    inception: Path | None = None
    vgg: Path | None = None
    clip: Path | None = None
    hpsv2: Path | None = None
    real: Path | None = None
    prefix: str = ""


def score_images(
    scenario: Scenario,
    source: RecordingSource,
    captions: Callable[[int, int], list[str]],
    networks: Networks,
    torch_device: str,
    progress: Callable[[str, int, int], None],
) -> pd.DataFrame:
    """Return one row per distinct set of images: method, swept settings, images, and `fid`, `f1`, `clip`, `hpsv2` with `_lo` and `_hi`.

    Args:
        scenario: scenario whose images are scored.
        source: source of the sessions' recordings.
        captions: the pair's captions by (seed, count), from which prompts are drawn.
        networks: the metrics' networks.
        torch_device: torch device that the networks run on.
        progress: called with (stage, done, total).

    Raises:
        CiarSimError: a network or folder is invalid, or it cannot score the scenario's images; both are checked before an image is made.
    """
    manifest = pair_manifest(scenario.pair)
    _check(scenario, manifest, networks)
    swept = expand(scenario)
    if networks.inception or networks.vgg:
        _check_sets(swept, captions, manifest, networks.real)
    metrics = _metrics(networks, torch_device)
    cases, _ = search_thresholds(swept, manifest, captions, source)
    plan = Plan(cases, manifest, captions)
    plan.record(source, dict.fromkeys(key for case in cases for key in plan.of_case[case.index]))
    different = {tuple(plan.of_case[case.index]): case for case in reversed(cases)}  # keeps the first of equal cases
    rows = []
    for done, case in enumerate(reversed(different.values())):
        progress("scoring images", done, len(different))
        images = [recording.image for recording in plan.recorded(case)]
        changed = {path: value for path, value in case.swept.items() if path.startswith(CHANGE_IMAGES)}
        row: dict[str, object] = {"method": case.method.label, **changed, "images": len(images)}
        for name, metric in metrics.items():
            row |= with_ends(name, metric(images, plan.captions[case.index]))
        rows.append(row)
    progress("scoring images", len(different), len(different))
    return pd.DataFrame(rows)


def _check(scenario: Scenario, manifest: PairManifest, networks: Networks) -> None:
    """Raise CiarSimError if no network is named, or if one cannot score images of the scenario's pair."""
    pair = scenario.pair
    if not any((networks.inception, networks.vgg, networks.clip, networks.hpsv2)):
        raise CiarSimError("name at least one network: --inception, --vgg, --clip or --hpsv2")
    if manifest.statistics is not None:
        raise CiarSimError(f"the pair {manifest.name} makes no images: its sessions come from published figures")
    if isinstance(pair, PairSpec) and pair.backbone.classes and (networks.clip or networks.hpsv2):
        raise CiarSimError(
            f"clip and hpsv2 read captions, and the prompts of {manifest.name} are class labels; use fid or f1"
        )


# A metric of a set of images, each uint8 [H, W, 3], and their captions.
Metric = Callable[[Sequence[np.ndarray], Sequence[str]], Interval]


def _metrics(networks: Networks, torch_device: str) -> dict[str, Metric]:
    """Load the networks, and return the metrics by name. Raises CiarSimError if a network or the folder of real images is not usable."""
    nets = {
        name: (foreign.FeatureNet(path, torch_device), metric)
        for name, path, metric in (("fid", networks.inception, foreign.fid), ("f1", networks.vgg, foreign.f1))
        if path
    }
    clips = {
        name: (foreign.load_clip(path), prefix)
        for name, path, prefix in (("clip", networks.clip, networks.prefix), ("hpsv2", networks.hpsv2, ""))
        if path
    }
    real = _real_images(networks.real) if nets and networks.real else None

    @cache
    def references() -> list[np.ndarray]:
        return real or [scenes.image(REFERENCE_SEED, index) for index in range(REFERENCE_IMAGES)]

    def of_set(net: foreign.FeatureNet, metric: Callable[..., Interval]) -> Metric:
        return lambda images, captions: metric(net, images, references())

    def of_captions(clip: foreign.Clip, prefix: str) -> Metric:
        return lambda images, captions: student_interval(foreign.clip_scores(clip, images, captions, prefix))

    return {name: of_set(*one) for name, one in nets.items()} | {name: of_captions(*one) for name, one in clips.items()}


def _check_sets(
    cases: Sequence[Case], captions: Callable[[int, int], list[str]], manifest: PairManifest, real: Path | None
) -> None:
    """Raise CiarSimError if a case has too few prompts for fid and f1, or the pair's images need a folder of real ones and have none."""
    for case in cases:
        if (count := len(captions_of(case.scenario, captions))) < FEWEST:
            raise CiarSimError(f"{case.method.label}: fid and f1 need at least {FEWEST} images, prompts are {count}")
    if real is None and (manifest.subject, manifest.image_size) != ("scenes", scenes.IMAGE_SIZE):
        raise CiarSimError("fid and f1 need real images to compare with: name their folder by --real")


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
