"""Tables of the evaluation: ranking of events by each score, and means by region."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from models.evaluate import ranking
from models.evaluate.ceiling import CEILING
from models.evaluate.pixels import SMALL_RMS
from models.evaluate.reading import EVENTS, REGIONS
from simulator.core.rng import stream

DRAWS = 2000  # samples of the bootstrap


def happened(tokens: pd.DataFrame, event: str) -> np.ndarray:
    """Return whether an event of `EVENTS` happened at each token, bool [n]; medians are taken over the whole table."""
    values = tokens[event].to_numpy()
    return values.astype(bool) if event == "differs" else values > np.median(values)


def rank(
    tokens: pd.DataFrame, labels: dict[str, str], owners: dict[str, str], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return summary, risk curves and calibration of every measure in `labels`.

    In the summary, minus_entropy and minus_max_prob are differences of AUROC on the same tokens and the same bootstrap samples.

    Args:
        tokens: a row per token; a measure's scores are the column of its name, the ceiling's are `ceiling.<event>`.
        labels: label by measure.
        owners: method by measure.
        seed: seed of the bootstrap.
    """
    prompt = tokens["prompt"].to_numpy()
    prompts = int(prompt.max()) + 1
    weights = ranking.bootstrap_weights(stream(seed, "evaluate.bootstrap"), prompts, DRAWS)
    drawn: dict[tuple[str, str, int], tuple[float, np.ndarray]] = {}

    def aurocs(column: str, event: str, hit: np.ndarray, known: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the AUROC of a column among the known tokens, and its bootstrap samples.

        Known tokens are either all tokens or those with discrete scores, so their number identifies them.
        """
        key = (column, event, int(known.sum()))
        if key not in drawn:
            pairs = ranking.count_pairs(tokens[column].to_numpy()[known], hit[known], prompt[known], prompts)
            drawn[key] = float(pairs.auroc(np.ones(prompts))), pairs.auroc(weights)
        return drawn[key]

    rows: list[dict[str, Any]] = []
    risks: list[pd.DataFrame] = []
    bins: list[dict[str, Any]] = []
    for event in EVENTS:
        hit = happened(tokens, event)
        for name, label in labels.items():
            column = f"{CEILING}.{event}" if name == CEILING else name
            if column not in tokens:
                continue
            known = np.isfinite(tokens[column].to_numpy())
            score, here, owner = tokens[column].to_numpy()[known], hit[known], prompt[known]
            value, draws = aurocs(column, event, hit, known)
            low, high = ranking.interval(draws)
            row = {
                "measure": name,
                "method": owners.get(name, ""),
                "label": label,
                "event": event,
                "auroc": value,
                "auroc_low": low,
                "auroc_high": high,
                "aurc": ranking.area_under_risk(score, here),
                "event_pct": 100 * float(here.mean()),
                "tokens": len(score),
            }
            for short, other in (("entropy", "entropy"), ("max_prob", "max-prob")):
                reference, other_draws = aurocs(other, event, hit, known)
                low, high = ranking.interval(draws - other_draws)
                row |= {f"minus_{short}": value - reference, f"minus_{short}_low": low, f"minus_{short}_high": high}
            rows.append(row)
            curve = ranking.risk_coverage(score, here)
            at = np.unique(np.linspace(0, len(curve) - 1, 201).round().astype(int))
            risks.append(
                pd.DataFrame({"measure": name, "event": event, "coverage": (at + 1) / len(curve), "risk": curve[at]})
            )
            bins += [
                {"measure": name, "event": event, "bin": index, **part.__dict__}
                for index, part in enumerate(ranking.calibration(score, here, owner, weights))
            ]
    return pd.DataFrame(rows), pd.concat(risks, ignore_index=True), pd.DataFrame(bins)


def region_table(tokens: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return a row per region, if regions are known, and one for all tokens.

    The columns are the number of tokens, the share of tokens that differ, means of the cloud's entropy, of tv, nll and each score, and, if
    measured, the share of small changes in pixels (`with_pixels`).
    """
    columns = [
        "cloud_entropy_nats",
        "cloud_entropy_unguided_nats",
        "tv",
        "nll",
        *(name for name in names if name in tokens),
    ]
    rows = []
    for region in (*(REGIONS.values() if (tokens["region"] != "").any() else ()), "all"):
        part = tokens if region == "all" else tokens[tokens["region"] == region]
        known = {name: float(part[name].mean()) for name in columns if part[name].notna().any()}
        differs = 100 * float(part["differs"].mean())
        rows.append(
            {
                "region": region,
                "tokens": len(part),
                "share_pct": 100 * len(part) / len(tokens),
                "differs_pct": differs,
                **known,
            }
        )
    table = pd.DataFrame(rows)
    return with_pixels(table, tokens) if "pixel_rms" in tokens else table


def with_pixels(table: pd.DataFrame, tokens: pd.DataFrame) -> pd.DataFrame:
    """Add to a region table the share, in percent, of compared tokens that change an image by less than `SMALL_RMS`.

    `small_change_pct` compares the device's token with the cloud's, `small_change_draws_pct` one sample of the cloud
    with another. NaN where no token was compared.
    """
    found: dict[str, list[float]] = {"small_change_pct": [], "small_change_draws_pct": []}
    for region in table["region"]:
        part = tokens if region == "all" else tokens[tokens["region"] == region]
        for name, column in zip(found, ("pixel_rms", "pixel_rms_draws"), strict=True):
            known = part[column].dropna()
            found[name].append(100 * float((known < SMALL_RMS).mean()) if len(known) else math.nan)
    return table.assign(**found)
