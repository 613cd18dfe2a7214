"""Where device and cloud agree, teacher-forced: agreement, entropy and calls by region of an image on plain white ground, and how well
each score ranks the tokens that the cloud would decide otherwise.

Two events, one per way of picking local tokens: `differs`, the arg maxes of both models are not equal (greedy), and `rejected`, a token
drawn from the device fails speculative decoding's test against the cloud (sampled); its mean is the total variation between both.
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

CALL_PCT = 30.0  # share of tokens above the threshold in `calls_pct`
CHUNK = 4  # sequences read at once: bounds memory at a few [4, T, V] float32
CEILING_SEQUENCES = 128  # that the ceiling is trained on

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
    """What both models say of every token, and every score of the device, over all sequences.

    Args:
        device: in `eval()` mode.
        cloud: likewise.
        rows: the sequences, a few at a time.
        guidance: of both models.
        ceiling: a network whose log-odds of `differs` are one more score.
    """
    # Filled in place: small arrays kept from each pass would leave holes between its large ones that no later pass fits into.
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
    """Nats of the tokens, the distance of both distributions, and the device's scores."""
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
    """The columns that are uncertainty scores."""
    ends = ("u_tilde", "omega", "lower_top")
    of_interval = [name for name in columns if name.endswith(ends)]
    return ["entropy", "one_minus_max_p", *of_interval, *([CEILING] if CEILING in columns else [])]


def by_region(columns: Columns, white: np.ndarray) -> dict[str, Any]:
    """A mapping for all tokens and for each of `REGIONS`, NaN-free: regions without tokens are left out.

    Returns:
        For each, in percent of its tokens unless named otherwise: `share_pct` of all tokens, `agreement_pct` of arg maxes,
        `acceptance_pct` of sampled tokens (speculative test), `cloud_entropy_nats`, `nats` and `cloud_nats` per token, `calls_pct` by
        score: tokens among the `CALL_PCT` % of all with the highest score, and `auroc` by event and score.
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
    """Four digits; None for NaN, which JSON does not have."""
    return None if math.isnan(value) else round(value, 4)


def train_ceiling(device: DeviceModel, cloud: Transformer, rows: Iterable[Rows], guidance: float = 1.0) -> Ceiling:
    """A network trained for the events on sequences that it is not judged on."""
    data: list[tuple[np.ndarray, ...]] = []
    for tokens, captions, mask in rows:
        with torch.inference_mode():
            reading = read_rows(cloud, device, tokens, captions, mask, guidance)
            inputs, found = Ceiling.inputs(reading.hidden, reading.device).cpu().numpy(), events(reading)
        targets = [found[name].astype(np.float32) for name in Ceiling.names]
        data += [(inputs[i], *(target[i] for target in targets)) for i in range(len(tokens))]
    return Ceiling.train(data, 0, lambda text, done, total: None)
