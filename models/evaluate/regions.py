"""Agreement of device and cloud, teacher-forced: agreement, entropy, calls and AUROC of each score, by region of the image.

There is one event for each way of picking local tokens. `differs` (greedy): the arg maxes of both models are not equal. `rejected`
(sampled): a token drawn from the device fails speculative decoding's test against the cloud; its mean is the total variation between the
two distributions.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.device import DeviceModel
from models.evaluate.ceiling import CEILING, Ceiling
from models.evaluate.ground import REGIONS, regions_of
from models.evaluate.ranking import auroc
from models.evaluate.reading import Reading, events, read_rows
from models.interval import inter_fuse, uncertainty
from models.methods.scores import entropy
from models.sampling import sample
from models.transformer import Transformer
from simulator.core.rng import stream

CALL_PCT = 30.0  # share of all tokens above the threshold in `calls_pct`
CHUNK = 4  # sequences per pass: limits memory to a few [4, T, V] float32
CEILING_SEQUENCES = 128  # training sequences of the ceiling

Columns = dict[str, np.ndarray]  # per token: [N, T]
# Tokens int64 [B, T], caption rows [B, slots, caption_dim], their mask bool [B, slots].
Rows = tuple[Tensor, Tensor, Tensor]


@torch.inference_mode()
def columns_of(
    device: DeviceModel,
    cloud: Transformer,
    rows: Sequence[Rows],
    guidance: float = 1.0,
    ceiling: Ceiling | None = None,
) -> Columns:
    """Return events, likelihoods and scores of every token of all sequences.

    Args:
        device: device model in `eval()` mode.
        cloud: cloud model in `eval()` mode.
        rows: the sequences, a few per element.
        guidance: guidance scale of both models.
        ceiling: a network whose log-odds of `differs` are an additional score.
    """
    # Filled in place: small arrays kept from each pass would fragment the memory between its large ones.
    table: Columns = {}
    count, first = sum(len(tokens) for tokens, _, _ in rows), 0
    for index, (tokens, captions, mask) in enumerate(rows):
        reading = read_rows(cloud, device, tokens, captions, mask, guidance)
        found = {"token": tokens.cpu().numpy(), **events(reading), **_more(device, reading, tokens)}
        u = torch.from_numpy(stream(0, "evaluate.regions", index).random((2, *tokens.shape)))  # [2, B, T]
        p, q = reading.cloud.softmax(-1).flatten(0, 1), reading.device.softmax(-1).flatten(0, 1)  # each [B * T, V]
        drawn = sample(q, u[0].flatten().to(q.device)).unsqueeze(-1)
        ratio = (p.gather(-1, drawn) / q.gather(-1, drawn)).view(tokens.shape).cpu()
        found["rejected"] = (u[1] >= ratio).numpy()
        if ceiling is not None:
            found[CEILING] = ceiling.scores(reading.hidden, reading.device)[f"{CEILING}.differs"]
        for name, values in found.items():
            if name not in table:
                table[name] = np.empty((count, values.shape[1]), values.dtype)
            table[name][first : first + len(values)] = values
        first += len(tokens)
    return table


def _more(device: DeviceModel, reading: Reading, tokens: Tensor) -> Columns:
    """Return the nats of the tokens, the KL divergence of both distributions, and the device's scores."""
    log_p, log_q = reading.cloud.log_softmax(-1), reading.device.log_softmax(-1)
    q, top = log_q.exp(), reading.device.argmax(-1)
    plain = device.centre(reading.hidden[..., : device.config.dim])  # unguided
    columns = {
        "cloud_nats": F.cross_entropy(reading.plain.flatten(0, 1), tokens.flatten(), reduction="none").view(top.shape),
        "nats": F.cross_entropy(plain.flatten(0, 1), tokens.flatten(), reduction="none").view(top.shape),
        "kl": (log_p.exp() * (log_p - log_q)).sum(-1),
        "entropy": entropy(reading.device),
        "one_minus_max_p": 1 - q.amax(-1),
    }
    for bounds, radius in reading.radius.items():
        lower, upper = inter_fuse(reading.device, radius)
        found = uncertainty(lower, upper, top)
        columns[f"{bounds}.u_tilde"] = found.u_tilde
        columns[f"{bounds}.omega"] = found.omega
        columns[f"{bounds}.lower_top"] = found.lower_top
        columns[f"{bounds}.inside"] = ((log_p.exp() >= lower) & (log_p.exp() <= upper)).float().mean(-1)
    return {name: values.float().cpu().numpy() for name, values in columns.items()}


def score_names(columns: Columns) -> list[str]:
    """Return the names of the columns that are uncertainty scores."""
    ends = ("u_tilde", "omega", "lower_top")
    of_interval = [name for name in columns if name.endswith(ends)]
    return ["entropy", "one_minus_max_p", *of_interval, *([CEILING] if CEILING in columns else [])]


def by_region(columns: Columns, white: np.ndarray) -> dict[str, Any]:
    """Return metrics for all tokens (`all`) and for each of `REGIONS` that has tokens.

    Args:
        columns: result of `columns_of`.
        white: codes of the background (`models.evaluate.ground`).

    Returns:
        By region a mapping of:
        `share_pct`: share of all tokens.
        `agreement_pct`: share of tokens with equal arg maxes.
        `acceptance_pct`: expected share of sampled device tokens that speculative decoding's test accepts.
        `cloud_entropy_nats`, `nats`, `cloud_nats`: means per token.
        `calls_pct`: by score, share of tokens that are among the `CALL_PCT` % of all tokens with the highest scores.
        `auroc`: by event and score; None without events or without non-events.
    """
    region = regions_of(columns["token"], white)
    names = score_names(columns)
    called = {name: columns[name] >= np.quantile(columns[name], 1 - CALL_PCT / 100) for name in names}
    found: dict[str, Any] = {}
    for index, name in ((None, "all"), *enumerate(REGIONS)):
        here = np.ones_like(region, dtype=bool) if index is None else region == index
        if not here.any():
            continue
        found[name] = {
            "share_pct": 100 * float(here.mean()),
            "agreement_pct": 100 * float(1 - columns["differs"][here].mean()),
            "acceptance_pct": 100 * float(1 - columns["tv"][here].mean()),
            **{key: float(columns[key][here].mean()) for key in ("cloud_entropy_nats", "nats", "cloud_nats")},
            "calls_pct": {score: 100 * float(up[here].mean()) for score, up in called.items()},
            "auroc": {
                event: {score: rounded(auroc(columns[score][here], columns[event][here])) for score in names}
                for event in ("differs", "rejected")
            },
        }
    return found


def rounded(value: float) -> float | None:
    """Round to four digits; return None for NaN, which JSON cannot represent."""
    return None if math.isnan(value) else round(value, 4)


def train_ceiling(device: DeviceModel, cloud: Transformer, rows: Iterable[Rows], guidance: float = 1.0) -> Ceiling:
    """Train a ceiling on `rows`, which must not be the sequences that it is evaluated on."""
    data: list[tuple[np.ndarray, ...]] = []
    for tokens, captions, mask in rows:
        with torch.inference_mode():
            reading = read_rows(cloud, device, tokens, captions, mask, guidance)
            inputs, found = Ceiling.inputs(reading.hidden, reading.device).cpu().numpy(), events(reading)
        targets = [found[name].astype(np.float32) for name in Ceiling.names]
        data += [(inputs[i], *(target[i] for target in targets)) for i in range(len(tokens))]
    return Ceiling.train(data, 0, lambda text, done, total: None)
