"""How well each uncertainty score tells where the cloud would choose otherwise, teacher-forced on held-out prompts.

Device and cloud read the same sequences, both guided as deployed, and every score object of `models.methods.scores` is asked at every
position. Three events are to be foretold (`EVENTS`):

    differs   the cloud's arg max is not the device's
    tv        the total variation between both distributions is above its median over all tokens
    nll       the cloud's negative log-likelihood of the device's token is above its median

What the sequences are (`on`): `generated`, decoded by the cloud as `base` decodes under the default settings, is what both models read when
deployed; `scenes`, the tokens of real held-out scenes, is what they were trained on and is cheaper.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from models import scenes
from models.evaluate import ranking
from models.evaluate.ceiling import CEILING, Ceiling
from models.interval import inter_fuse, sampled_bounds, uncertainty
from models.methods import DeviceState
from models.methods.scores import Column, Margin, Score, all_scores, entropy, make_score, margin
from models.methods.session import Step
from models.pair import Pair
from models.recorder import Recorder
from models.sampling import greedy, guide
from models.text import left_pad
from models.vq import from_uint8
from simulator.core.errors import CiarSimError
from simulator.core.rng import stream
from simulator.protocol.methods import METHODS, Decoding, GatedSettings
from simulator.protocol.ops import Compute
from simulator.protocol.recording import SCORES, SessionSpec

On = Literal["generated", "scenes"]
Progress = Callable[[str, int, int], None]
EVENTS = {
    "differs": "the cloud's most likely token is another",
    "tv": "total variation to the cloud above its median",
    "nll": "the cloud's nats for the device's token above their median",
}
REGIONS = {scenes.BACKGROUND: "background", scenes.OBJECT: "object", scenes.BORDER: "border"}
TRAINED_ON = (1, 2)  # scene seeds that training reads and picks by
DRAWS = 2000  # of the bootstrap
CEILING_PROMPTS_PER_PROMPT = 3
_CHUNK = 4  # prompts read at once: bounds memory at a few [4, T, V] float32


@dataclass(frozen=True)
class Measure:
    """One uncertainty score. `method`: the gated method that decides by it, empty if none. `bounds`: which radius matrix it reads.

    sampled: dear, so asked at some positions only.
    """

    name: str
    method: str
    label: str
    make: Callable[[DeviceState], Score]
    bounds: str
    sampled: bool = False


def measures(bounds: Sequence[str]) -> list[Measure]:
    """Every measure for a device with these radius matrices, the one in use first."""

    def of(method: str, **settings: Any) -> Callable[[DeviceState], Score]:
        parsed = METHODS[method].settings.model_validate(settings)
        assert isinstance(parsed, GatedSettings)
        return lambda state: make_score(parsed, state)

    found = []
    for name in bounds:
        more, said = ("", "") if name == bounds[0] else (f"[{name}]", f" [{name}]")
        found += [
            Measure(f"u{more}", "ciar", f"Inter-Head U~{said}", of("ciar", score="u"), name),
            Measure(f"u-raw{more}", "", f"Inter-Head U as printed{said}", lambda state: Column("u_raw"), name),
            Measure(f"omega{more}", "ciar", f"Inter-Head Omega{said}", of("ciar", score="omega"), name),
            Measure(
                f"lower-top{more}", "ciar", f"Inter-Head 1 - lower bound{said}", of("ciar", score="lower-top"), name
            ),
        ]
    own = bounds[0]
    return [
        *found,
        Measure("entropy", "entropy-lens", "entropy (Entropy-Lens)", of("entropy-lens"), own),
        Measure("max-prob", "softmax-corr", "1 - max p (SoftmaxCorr)", of("softmax-corr"), own),
        Measure("margin", "", "1 - margin of the top two", lambda state: Margin(), own),
        Measure(
            "softmax-corr-window", "softmax-corr", "SoftmaxCorr, last 16", of("softmax-corr", reading="window"), own
        ),
        Measure(
            "softmax-corr-literal", "softmax-corr", "SoftmaxCorr, one token", of("softmax-corr", reading="literal"), own
        ),
        Measure("discrete-100", "discrete", "discrete, k = 100", of("discrete", k=100), own, sampled=True),
        Measure("discrete-300", "discrete", "discrete, k = 300", of("discrete", k=300), own, sampled=True),
        Measure("random", "random", "random", of("random"), own),
    ]


@dataclass(frozen=True)
class Settings:
    """What is measured. sampled_tokens: positions per prompt at which the discrete scores are asked; they cost k rows of V each."""

    prompts: int = 64
    seed: int = 3
    on: On = "generated"
    guidance: float | None = None  # None: as a scenario decodes by default
    sampled_tokens: int = 64
    ceiling: bool = False
    timing: bool = True

    @property
    def decoding(self) -> Decoding:
        return Decoding.model_validate({} if self.guidance is None else {"guidance": self.guidance})


@dataclass(frozen=True)
class Evaluation:
    """tokens: a row per token, with its events and scores. summary: a row per measure and event. curves: risk by coverage and share of
    events by score quantile, as drawn. regions: a row per region of real scenes. timing: a row per measure and codebook size, or None."""

    facts: dict[str, Any]
    tokens: pd.DataFrame
    summary: pd.DataFrame
    risk: pd.DataFrame
    calibration: pd.DataFrame
    regions: pd.DataFrame
    timing: pd.DataFrame | None


def evaluate_uncertainty(
    pair: Pair, settings: Settings = Settings(), progress: Progress = lambda text, done, total: None
) -> Evaluation:
    """Everything that `ciar-sim evaluate uncertainty` reports. The same pair and settings give the same tables, `timing` apart.

    Raises CiarSimError for a seed that training has seen, PromptError where the pair does not know the scenes' words.
    """
    if settings.seed in TRAINED_ON:
        raise CiarSimError(
            f"--seed {settings.seed}: scenes of the seeds {', '.join(map(str, TRAINED_ON))} were trained on; take another"
        )
    found = measures(pair.manifest.bounds)
    prompts = distinct_scenes(settings.seed, settings.prompts)
    head = None
    if settings.ceiling:
        more = distinct_scenes(settings.seed, settings.prompts * (1 + CEILING_PROMPTS_PER_PROMPT))[settings.prompts :]
        texts = [scenes.scene(settings.seed, index).caption for index in more]
        assert not {scenes.scene(settings.seed, index).caption for index in prompts} & set(texts)
        head = Ceiling.train(_ceiling_data(pair, settings, more, progress), settings.seed, progress)
    tokens = token_table(pair, settings, prompts, found, settings.on, head, progress)
    real = tokens if settings.on == "scenes" else token_table(pair, settings, prompts, found, "scenes", None, progress)
    labels = {measure.name: measure.label for measure in found} | (
        {CEILING: "ceiling: a head trained for it"} if head else {}
    )
    owners = {measure.name: measure.method for measure in found}
    summary, risk, calibrated = rank(tokens, labels, owners, settings.seed)
    facts = {
        "pair": pair.manifest.name,
        "weights": pair.manifest.weights_hash,
        "on": settings.on,
        "seed": settings.seed,
        "prompts": len(prompts),
        "tokens": len(tokens),
        "guidance": settings.decoding.guidance,
        "differs_pct": 100 * float(tokens["differs"].mean()),
        "tv_median": float(tokens["tv"].median()),
        "nll_median_nats": float(tokens["nll"].median()),
        "bootstrap_draws": DRAWS,
    }
    timing = None
    if settings.timing:
        progress("timing", 0, 1)
        timing = time_measures(pair.manifest.device.dim)
    return Evaluation(facts, tokens, summary, risk, calibrated, region_table(real, list(labels)), timing)


# ---- sequences --------------------------------------------------------------------------------------------------------------------


def distinct_scenes(seed: int, count: int) -> list[int]:
    """Indices of the first `count` scenes of a seed whose captions are all different."""
    seen: set[str] = set()
    indices: list[int] = []
    index = 0
    while len(indices) < count:
        caption = scenes.scene(seed, index).caption
        if caption not in seen:
            seen.add(caption)
            indices.append(index)
        index += 1
    return indices


def generated(pair: Pair, seed: int, captions: Sequence[str], decoding: Decoding, progress: Progress) -> Tensor:
    """Tokens int64 [N, T] that the cloud alone decodes for distinct captions, as the method `base` does."""
    plain, settings, weights = (
        decoding.model_dump(),
        METHODS["base"].settings.model_validate({}).model_dump(),
        pair.manifest.weights_hash,
    )
    specs = [
        SessionSpec(weights, "base", METHODS["base"].revision, settings, plain, caption, seed) for caption in captions
    ]
    recorder = Recorder(
        pair, progress=lambda finished, sessions, decided, total: progress("cloud decodes", decided, total)
    )
    tokens = {spec.prompt: recording.tokens for spec, recording in recorder.record(specs)}
    return torch.from_numpy(np.stack([tokens[caption] for caption in captions]).astype(np.int64))


@torch.inference_mode()
def encoded(pair: Pair, seed: int, indices: Sequence[int]) -> Tensor:
    """Tokens int64 [N, T] of real scenes, shrunk to the pair's image size by averaging where that is smaller."""
    size = pair.manifest.image_size
    if scenes.IMAGE_SIZE % size:
        raise CiarSimError(f"scenes of {scenes.IMAGE_SIZE} pixels cannot be shrunk to the pair's {size}")
    times = scenes.IMAGE_SIZE // size
    rows = []
    for index in indices:
        image = scenes.image(seed, index).reshape(size, times, size, times, 3).mean((1, 3)).astype(np.uint8)
        pixels = from_uint8(torch.from_numpy(image).unsqueeze(0)).to(
            pair.torch_device, next(pair.tokenizer.parameters()).dtype
        )
        rows.append(pair.tokenizer.encode_codes(pixels))
    return torch.cat(rows).cpu()


def token_regions(scene: scenes.Scene, grid: int) -> np.ndarray:
    """int [grid * grid]: region of each token's square of the picture.

    `border` if any pixel of the square lies within 2 pixels of a visible outline, else the region of most of its pixels.
    """
    side = scenes.IMAGE_SIZE // grid
    cells = (
        scenes.region_map(scene).reshape(grid, side, grid, side).transpose(0, 2, 1, 3).reshape(grid * grid, -1)
    )  # [T, pixels]
    most = np.where((cells == scenes.OBJECT).sum(1) * 2 > cells.shape[1], scenes.OBJECT, scenes.BACKGROUND)
    return np.where((cells == scenes.BORDER).any(1), scenes.BORDER, most)


# ---- reading ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What both models make of B sequences.

    cloud, device: guided logits [B, T, V]; plain: the cloud's conditional ones. hidden: the device's states [B, T, D] and, with guidance,
    the unconditional row's beside them, [B, T, 2 D]. radius: per kind of bounds [B, T, V].
    """

    cloud: Tensor
    plain: Tensor
    device: Tensor
    hidden: Tensor
    radius: dict[str, Tensor]


def read(pair: Pair, captions: Sequence[str], tokens: Tensor, scale: float) -> Reading:
    """Teacher-force tokens int [B, T] through cloud and device, at guidance `scale`."""
    padded = [left_pad(pair.text.encode(caption), pair.manifest.caption_slots) for caption in captions]
    rows = torch.stack([row for row, _ in padded]).to(pair.torch_device)
    mask = torch.stack([valid for _, valid in padded]).to(pair.torch_device)
    ids = tokens[:, :-1].to(pair.torch_device)
    guided, states, plain = [], [], []
    for model in (pair.cloud, pair.device.transformer):
        logits, hidden = model(ids, rows, mask)
        plain.append(logits)
        if scale > 1:
            other, other_hidden = model(ids, model.null_caption(len(ids)), mask)
            logits, hidden = guide(logits, other, scale), torch.cat([hidden, other_hidden], dim=-1)
        guided.append(logits)
        states.append(hidden)
    conditional = states[1][
        ..., : pair.manifest.device.dim
    ]  # the radius is that of the conditional row (assumption A5)
    radius = {bounds: pair.device.radius(conditional, bounds) for bounds in pair.manifest.bounds}
    return Reading(guided[0], plain[0], guided[1], states[1], radius)


def events(reading: Reading) -> dict[str, np.ndarray]:
    """Per token [B, T]: differs, tv, nll (nats), and the cloud's entropies (nats), guided and not."""
    p, q = reading.cloud.log_softmax(-1), reading.device.softmax(-1)
    token, best = greedy(reading.device), greedy(reading.cloud)
    columns = {
        "device_token": token,
        "cloud_token": best,
        "differs": token != best,
        "tv": 0.5 * (p.exp() - q).abs().sum(-1),
        "nll": -p.gather(-1, token.unsqueeze(-1)).squeeze(-1),
        "cloud_entropy_nats": entropy(reading.cloud),
        "cloud_entropy_unguided_nats": entropy(reading.plain),
    }
    return {name: values.cpu().numpy() for name, values in columns.items()}


def token_scores(
    reading: Reading, index: int, state: DeviceState, found: Sequence[Measure], sampled: np.ndarray
) -> dict[str, np.ndarray]:
    """Every measure at every position of sequence `index`, float64 [T]; NaN where a dear one is not asked.

    sampled: int positions at which measures that sample are asked.
    """
    logits, hidden = reading.device[index], reading.hidden[index]
    steps: dict[str, list[Step]] = {}
    for bounds, radius in reading.radius.items():
        lower, upper = inter_fuse(logits, radius[index])
        rows = all_scores(logits, lower, upper).cpu().numpy()
        steps[bounds] = [
            Step(0, logits[t], hidden[t], rows[t], lower[t], upper[t], radius[index, t]) for t in range(len(logits))
        ]
    columns = {}
    for measure in found:
        score = measure.make(state)
        values = np.full(len(logits), np.nan)
        for t in sampled if measure.sampled else range(len(logits)):
            values[t] = answered(score, steps[measure.bounds][t], int(t))
        columns[measure.name] = values
    return columns


def answered(score: Score, step: Step, position: int) -> float:
    """A score's value, doing the computations it waits for as the backend does them."""
    program, answer = score.of(step, position), None
    while True:
        try:
            op = program.send(answer)
        except StopIteration as stop:
            return float(stop.value)
        assert isinstance(op, Compute)
        assert op.kind == "interval_samples"
        asked, noise = op.payload
        answer = sampled_bounds(asked.logits, asked.radius, torch.from_numpy(noise))


def _readings(
    pair: Pair, settings: Settings, indices: Sequence[int], on: On, progress: Progress
) -> Iterator[tuple[int, list[str], Reading]]:
    """Readings of a few prompts at a time, with the place of their first and their captions."""
    captions = [scenes.scene(settings.seed, index).caption for index in indices]
    decoding = settings.decoding
    if on == "generated":
        tokens = generated(pair, settings.seed, captions, decoding, progress)
    else:
        for caption in captions:
            pair.text.encode(caption)  # what is to be refused is refused before any work is done
        tokens = encoded(pair, settings.seed, indices)
    for first in range(0, len(captions), _CHUNK):
        texts = captions[first : first + _CHUNK]
        yield first, texts, read(pair, texts, tokens[first : first + _CHUNK], decoding.guidance)


@torch.inference_mode()
def token_table(
    pair: Pair,
    settings: Settings,
    indices: Sequence[int],
    found: Sequence[Measure],
    on: On,
    head: Ceiling | None,
    progress: Progress,
) -> pd.DataFrame:
    """A row per token, in order of prompts and positions: what happened there, and every score. Discrete scores on `settings.on` alone."""
    count = pair.manifest.image_tokens
    asked = min(settings.sampled_tokens, count) if on == settings.on else 0
    chosen = [measure for measure in found if asked or not measure.sampled]
    parts: list[pd.DataFrame] = []
    for first, texts, reading in _readings(pair, settings, indices, on, progress):
        columns = events(reading)
        ceilings = head.scores(reading.hidden, reading.device) if head is not None else {}
        for offset, caption in enumerate(texts):
            progress(f"scoring {on}", len(parts), len(indices))
            place = first + offset
            state = DeviceState(
                count, pair.manifest.caption_dim, caption=caption, decoding=settings.decoding, seed=settings.seed
            )
            sampled = np.sort(stream(settings.seed, "evaluate.sampled", place).permutation(count)[:asked])
            region = token_regions(scenes.scene(settings.seed, indices[place]), pair.manifest.grid)
            values: dict[str, Any] = {
                "prompt": place,
                "position": np.arange(count),
                "caption": caption,
                # A generated picture need not hold the scene's objects where the scene has them.
                "region": [REGIONS[int(r)] for r in region] if on == "scenes" else "",
                **{
                    name: column[offset].astype(np.float64 if column.dtype.kind == "f" else np.int64)
                    for name, column in columns.items()
                },
                **token_scores(reading, offset, state, chosen, sampled),
                **{name: column[offset] for name, column in ceilings.items()},
            }
            parts.append(pd.DataFrame(values))
    return pd.concat(parts, ignore_index=True)


@torch.inference_mode()
def _ceiling_data(
    pair: Pair, settings: Settings, indices: Sequence[int], progress: Progress
) -> list[tuple[np.ndarray, ...]]:
    """Per prompt: what the head reads, float32 [T, F], and its three targets as floats [T] each."""
    rows: list[tuple[np.ndarray, ...]] = []
    for _, texts, reading in _readings(pair, settings, indices, settings.on, progress):
        inputs, columns = Ceiling.inputs(reading.hidden, reading.device).cpu().numpy(), events(reading)
        rows += [(inputs[i], *(columns[name][i].astype(np.float32) for name in EVENTS)) for i in range(len(texts))]
        progress("reading for the ceiling", len(rows), len(indices))
    return rows


# ---- tables -----------------------------------------------------------------------------------------------------------------------


def happened(tokens: pd.DataFrame, event: str) -> np.ndarray:
    """bool [n]: whether an event of `EVENTS` happened at each token; the medians are those of the whole table."""
    values = tokens[event].to_numpy()
    return values.astype(bool) if event == "differs" else values > np.median(values)


def rank(
    tokens: pd.DataFrame, labels: dict[str, str], owners: dict[str, str], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Summary, risk curves and calibration of every measure in `labels` (a column of `tokens`, or of the ceiling one per event).

    minus_entropy, minus_max_prob: differences of AUROC on the same tokens and the same drawn prompts.
    """
    prompt = tokens["prompt"].to_numpy()
    prompts = int(prompt.max()) + 1
    weights = ranking.bootstrap_weights(stream(seed, "evaluate.bootstrap"), prompts, DRAWS)
    drawn: dict[tuple[str, str, int], tuple[float, np.ndarray]] = {}

    def aurocs(column: str, event: str, hit: np.ndarray, known: np.ndarray) -> tuple[float, np.ndarray]:
        """AUROC of a column among known tokens (there are two kinds of them: all, and those the discrete scores were asked at)."""
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
    """A row per region of real scenes and one for all: tokens, the cloud's entropy, how often the two differ, and each score's mean."""
    columns = [
        "cloud_entropy_nats",
        "cloud_entropy_unguided_nats",
        "tv",
        "nll",
        *(name for name in names if name in tokens),
    ]
    rows = []
    for region in (*REGIONS.values(), "all"):
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
    return pd.DataFrame(rows)


# ---- timing -----------------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def time_measures(dim: int, sizes: Sequence[int] = (4096, 16384), repeats: int = 30) -> pd.DataFrame:
    """Milliseconds per token, one token at a time on the CPU, given its centre logits: median and quartiles. Nothing here is repeatable.

    With one thread it is CPU time, which other programs do not stretch, else wall time.

    `radius` is the second matrix product of the Inter-Head, from a hidden state of width `dim`, which its scores need besides.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    rows = []
    for size in sizes:
        rng = stream(0, "evaluate.timing", size)
        logits = torch.from_numpy(3 * rng.standard_normal(size).astype(np.float32))
        radius = torch.from_numpy(rng.uniform(0.2, 1.2, size).astype(np.float32))
        matrix, hidden = torch.randn(size, dim), torch.randn(dim)
        step = Step(0, logits, hidden, np.zeros(len(SCORES), np.float32), radius=radius)
        state = DeviceState(256, 1, caption="timing")
        interval = {"u": "u_tilde", "u-raw": "u", "omega": "omega", "lower-top": "lower_top"}
        work: dict[str, Callable[[], Any]] = {
            "radius": partial(_radius, matrix, hidden),
            **{name: partial(_interval_score, logits, radius, field) for name, field in interval.items()},
            "entropy": partial(entropy, logits),
            "max-prob": partial(_max_prob, logits),
            "margin": partial(margin, logits),
        }
        for measure in measures(("",)):
            if measure.name not in work:
                work[measure.name] = partial(answered, measure.make(state), step, 0)
        for name, call in work.items():
            count = max(3, repeats // 6) if name.startswith("discrete") else repeats
            for _ in range(3 if name.startswith("discrete") else 20):  # warm-up; fills SoftmaxCorr's window
                call()
            taken = []
            for _ in range(count):
                begin = clock()
                call()
                taken.append(1e3 * (clock() - begin))
            low, _, high = statistics.quantiles(taken, n=4)
            rows.append(
                {
                    "measure": name,
                    "vocab_size": size,
                    "ms_per_token": statistics.median(taken),
                    "ms_q25": low,
                    "ms_q75": high,
                    "threads": torch.get_num_threads(),
                }
            )
    return pd.DataFrame(rows)


def _radius(matrix: Tensor, hidden: Tensor) -> Tensor:
    return F.softplus(F.linear(hidden, matrix))


def _interval_score(centre: Tensor, radius: Tensor, field: str) -> float:
    return float(getattr(uncertainty(*inter_fuse(centre, radius)), field))


def _max_prob(logits: Tensor) -> Tensor:
    return 1 - logits.softmax(-1).amax(-1)
