"""The recorder of a pair that predicts scale by scale. A method only determines which side decides which scales.

So no programs are run. The ops of a session follow from its settings (`simulator.protocol.outline`), as those of statistical sessions at
VAR's costs do. The passes are run here, for many sessions in a batch, and give tokens, image and quality. Draws are keyed by
seed, caption, role and position. Sessions of one prompt that differ only in the device's first scale share the cloud's passes.

Letters: B batch, R rows of a pass (B, or 2B with guidance), T tokens of all scales, n tokens of one scale, D width, V codebook,
C width of a code.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from models.backbones.var import VarPair
from models.images import png_bytes
from models.methods.scores import entropy
from models.methods.session import NEAR_TIE
from models.sampling import filter_probs, greedy, greedy_margins, guide, sample, sample_margins
from models.var.transformer import Condition, ScaleCache, VarTransformer
from simulator.core.errors import PromptError, RecordingError, WeightsError
from simulator.core.rng import draws
from simulator.protocol.families import families
from simulator.protocol.methods import METHODS, BaseSettings, Decoding, MethodSettings
from simulator.protocol.outline import Outline, check_scales, cloud_prefix, decided_by, session_ops
from simulator.protocol.recording import FROM_CLOUD, SCORES, Recording, SessionSpec

Progress = Callable[[int, int, int, int], None]


@dataclass(frozen=True)
class VarRequest:
    """A session to record.

    Attributes:
        spec: the session.
        settings: settings of its method.
        decoding: decoding settings.
        label: class of the image.
        prefix: number of tokens of the image that the cloud decides: all, those of whole scales, or none.
    """

    spec: SessionSpec
    settings: MethodSettings
    decoding: Decoding
    label: int
    prefix: int

    @property
    def guided(self) -> bool:
        """Whether its passes have an unconditional row."""
        return self.decoding.guidance > 1


@dataclass
class Made:
    """Decided tokens with the values recorded about them, one entry per token, in order.

    Attributes:
        tokens: the codes.
        nll: negative log-likelihood of each code in nats under the guided distribution at temperature 1.
        best: the most likely code.
        margin: distance of the pick to another code (`models.methods.session.Decisions`).
        entropy: entropy of the guided distribution, divided by log V.
        doubt: 1 minus its largest probability.
    """

    tokens: np.ndarray
    nll: np.ndarray
    best: np.ndarray
    margin: np.ndarray
    entropy: np.ndarray
    doubt: np.ndarray

    @classmethod
    def joined(cls, parts: "Sequence[Made]") -> "Made":
        """Return the concatenated entries of several."""
        return cls(**{name: np.concatenate([getattr(one, name) for one in parts]) for name in _names()})

    def first(self, count: int) -> "Made":
        """Return the first entries."""
        return Made(**{name: getattr(self, name)[:count] for name in _names()})


def _names() -> list[str]:
    return [field.name for field in fields(Made)]


class ScaleRecorder:
    """Records sessions with one pair. Arguments: see `models.recorder.Recorder`."""

    def __init__(self, pair: VarPair, max_batch: int = 64, progress: Progress | None = None) -> None:
        self.pair, self.max_batch = pair, max_batch
        self.progress = progress or (lambda done, sessions, decided, tokens: None)
        self.scales = pair.manifest.scales
        self.ends = list(accumulate(side * side for side in self.scales))  # end of each scale in the sequence
        self.count = pair.manifest.image_tokens

    @torch.inference_mode()
    def record(self, specs: Sequence[SessionSpec]) -> Iterator[tuple[SessionSpec, Recording]]:
        """Yield recordings; those of one prompt are adjacent.

        Raises:
            PromptError: a prompt is not a class label.
            ScenarioError: the pair cannot run a method or its settings.
            WeightsError: the pair has no device model, or logits are not finite.
            RecordingError: a call that is always waited for is to miss a deadline.
        """
        asked = [self._ask(spec) for spec in specs]  # refuse bad sessions before any work is done
        order = [index for members in families(specs, self.count) for index in members]
        finished = 0
        for begin in range(0, len(order), self.max_batch):
            chunk = [asked[index] for index in order[begin : begin + self.max_batch]]

            def report(made: int, before: int = finished) -> None:
                self.progress(before, len(specs), before * self.count + made, len(specs) * self.count)

            for one, made in zip(chunk, self._tokens(chunk, report), strict=True):
                finished += 1
                yield one.spec, self._recording(one, made)
        self.progress(finished, len(specs), finished * self.count, len(specs) * self.count)

    def _ask(self, spec: SessionSpec) -> VarRequest:
        try:
            label = int(self.pair.text.encode(spec.prompt)[0, 0])
        except PromptError as error:
            error.prompt = spec.prompt
            raise
        settings = METHODS[spec.method].settings.model_validate(spec.settings)
        decoding = Decoding.model_validate(spec.decoding)
        check_scales(spec.method, self.pair.manifest)
        settings.check(decoding, self.pair.manifest)
        assert spec.revision == METHODS[spec.method].revision_of(settings)
        prefix = cloud_prefix(settings, self.count, self.scales)
        if spec.missed_calls:
            if spec.missed_calls != (0,) or not prefix or not settings.can_fall_back(decoding):
                raise RecordingError(f"{spec.method}: calls {list(spec.missed_calls)} cannot miss a deadline")
            prefix = 0
        return VarRequest(spec, settings, decoding, label, self.count if isinstance(settings, BaseSettings) else prefix)

    # --- tokens

    def _tokens(self, chunk: Sequence[VarRequest], report: Callable[[int], None]) -> list[Made]:
        """Decode the tokens of each session: the cloud's scales once per prompt, then the device's."""
        told = [0]

        def tell(count: int) -> None:
            told[0] = min(told[0] + count, len(chunk) * self.count)
            report(told[0])

        found: list[Made | None] = [None] * len(chunk)
        # Of the sessions with the same first tokens, by the index of one with the longest prefix, the indices of all.
        of_cloud: dict[int, list[int]] = {}
        for members in families([one.spec for one in chunk], self.count):
            if longest := max(chunk[index].prefix for index in members):
                of_cloud[next(index for index in members if chunk[index].prefix == longest)] = members
        for group in _alike([(chunk[index], index) for index in of_cloud]):
            made = self._decode("cloud", [chunk[index] for index in group], None, chunk[group[0]].prefix, tell)
            for lead, one in zip(group, made, strict=True):
                for index in of_cloud[lead]:
                    found[index] = one.first(chunk[index].prefix)
        for group in _alike([(one, index) for index, one in enumerate(chunk) if one.prefix < self.count]):
            before = [found[index] for index in group]
            known = [one for one in before if one is not None and len(one.tokens)]
            start = np.stack([one.tokens for one in known]) if known else None  # [B, prefix]
            made = self._decode("device", [chunk[index] for index in group], start, self.count, tell)
            for index, earlier, one in zip(group, before, made, strict=True):
                found[index] = one if earlier is None else Made.joined([earlier, one])
        return [one for one in found if one is not None]

    def _decode(
        self, role: str, group: Sequence[VarRequest], known: np.ndarray | None, last: int, tell: Callable[[int], None]
    ) -> list[Made]:
        """Decode the tokens after the known ones up to position `last`, for sessions that all have guidance or all have none.

        Args:
            role: cloud or device.
            group: the B sessions.
            known: int [B, first], tokens already decided, or None.
            last: end of the last scale to decode.
            tell: called with the number of tokens decided by each pass.
        """
        model, tokenizer, batch = self._model(role), self.pair.tokenizer, len(group)
        first = 0 if known is None else known.shape[1]
        rows = 2 if group[0].guided else 1
        condition = self._condition(model, group)
        cache = ScaleCache(model.config, rows * batch, last, self.pair.torch_device, self.pair.dtype)
        uniform = [self._draws(role, one) for one in group]
        latent, maps, fed = tokenizer.empty(batch), [], 0
        made: list[list[Made]] = [[] for _ in group]
        for scale, (begin, end) in enumerate(zip([0, *self.ends], self.ends, strict=False)):
            if end > last:
                break
            if scale:
                maps.append(tokenizer.inputs(latent, scale))  # [B, n, C]
            if end <= first:
                assert known is not None
                codes = torch.as_tensor(known[:, begin:end], dtype=torch.long, device=self.pair.torch_device)
            else:
                inputs = torch.cat([latent.new_zeros(batch, 0, latent.shape[1]), *maps], dim=1)
                hidden = model.step(condition, inputs.repeat(rows, 1, 1), fed, cache)[:, begin - fed :]  # [R, n, D]
                maps, fed = [], end
                for index, one in enumerate(group):
                    logits = self._guided(role, one, condition, hidden, index, batch, begin)  # [n, V]
                    made[index].append(_picked(logits, *self._rule(role, one), uniform[index][begin:end]))
                tell(batch * (end - begin))
                codes = torch.from_numpy(np.stack([one[-1].tokens for one in made])).to(self.pair.torch_device)
            if end < last:
                latent = latent + tokenizer.residual(codes, scale)
        return [Made.joined(one) for one in made]

    def _model(self, role: str) -> VarTransformer:
        model = self.pair.cloud if role == "cloud" else self.pair.device
        assert model is not None, "the settings of a method that needs the device have been checked"
        return model

    def _condition(self, model: VarTransformer, group: Sequence[VarRequest]) -> Condition:
        """Return the condition of the sessions' classes and, with guidance, of as many rows of the null class after them."""
        labels = [one.label for one in group] + [model.classes] * (len(group) if group[0].guided else 0)
        return model.condition(torch.tensor(labels, device=self.pair.torch_device))

    def _draws(self, role: str, one: VarRequest) -> np.ndarray:
        """Return the uniform draw of each position."""
        return draws(one.spec.seed, self.count + 1, "token", role, one.spec.prompt)

    @staticmethod
    def _rule(role: str, one: VarRequest) -> tuple[bool, float, int, float]:
        """Return whether a role samples, its temperature, top-k and top-p."""
        d = one.decoding
        sampled, top_p = (d.cloud == "sampled", d.top_p) if role == "cloud" else d.local_sampling
        return sampled, d.temperature, d.top_k, top_p

    def _guided(
        self, role: str, one: VarRequest, condition: Condition, hidden: Tensor, index: int, batch: int, begin: int
    ) -> Tensor:
        """Return the guided logits [n, V] of one session of a batch, from hidden states [R, n, D] at the positions from `begin` on."""
        model, places = self._model(role), [index, batch + index][: 2 if one.guided else 1]
        halves = [model.logits(hidden[row : row + 1], condition, slice(row, row + 1))[0] for row in places]
        logits = halves[0]
        if one.guided:
            strength = model.strengths(one.decoding.guidance)[begin : begin + len(logits)]
            logits = guide(halves[0], halves[1], strength)
        if not bool(logits.isfinite().all()):
            raise WeightsError(
                f"the pair {self.pair.manifest.name}: the {role}'s logits are not finite in {self.pair.dtype}: "
                "its weights overflow this type"
            )
        return logits

    # --- recordings

    def _recording(self, one: VarRequest, made: Made) -> Recording:
        manifest, spec = self.pair.manifest, one.spec
        codes = torch.from_numpy(made.tokens).to(self.pair.torch_device)[None]  # [1, T]
        latents = self.pair.tokenizer.latents(codes)
        image = self.pair.tokenizer.decode(latents[-1])[0].cpu().numpy()
        nll, best = (made.nll, made.best) if one.prefix == self.count else self._likelihood(one, codes, latents)
        widths = manifest.widths
        picture = isinstance(one.settings, BaseSettings) and one.settings.deliver == "image"
        outline = Outline(1, picture=png_bytes(image) if picture else b"", missed=bool(spec.missed_calls))
        decided = decided_by(one.settings, outline, self.count, self.scales)
        scores = np.full((self.count, len(SCORES)), np.nan, np.float32)
        local = decided != FROM_CLOUD
        scores[local, SCORES.index("entropy")] = made.entropy[local]
        scores[local, SCORES.index("mid_top")] = made.doubt[local]
        return Recording(
            ops=session_ops(
                one.settings, one.decoding, outline, spec.prompt, spec.seed, self.count, widths, self.scales
            ),
            tokens=made.tokens.astype(np.uint16),
            decided_by=decided,
            scores=scores,
            image=image,
            nll=nll.astype(np.float32),
            argmax=best.astype(np.uint16),
            widths=widths,
            meta={
                "spec": dict(spec.__dict__),
                "decisions": self.count,
                "near_ties": int((made.margin < NEAR_TIE).sum()),
            },
        )

    def _likelihood(self, one: VarRequest, codes: Tensor, latents: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Return the cloud's negative log-likelihood of each token in nats, given all smaller scales, and its arg max, from one pass."""
        model = self.pair.cloud
        maps = torch.cat(
            [self.pair.tokenizer.inputs(latents[scale - 1], scale) for scale in range(1, len(self.scales))], dim=1
        )
        condition = self._condition(model, [one])
        hidden = model.step(condition, maps.repeat(2 if one.guided else 1, 1, 1))  # [R, T, D]
        logits = self._guided("cloud", one, condition, hidden, 0, 1, 0)  # [T, V]
        return _nats(logits, codes[0]).cpu().numpy(), greedy(logits).cpu().numpy()


def _alike(asked: Sequence[tuple[VarRequest, int]]) -> list[list[int]]:
    """Group the indices of sessions that can share passes: same prefix, and all with guidance or all without."""
    found: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for one, index in asked:
        found[one.prefix, one.guided].append(index)
    return list(found.values())


def _picked(logits: Tensor, sampled: bool, temperature: float, top_k: int, top_p: float, u: np.ndarray) -> Made:
    """Pick the code of every position of a scale, from guided logits [n, V] and uniform draws [n]."""
    if sampled:
        each = torch.ones(len(logits))
        probs = filter_probs(logits, temperature * each, top_k * each.long(), top_p * each)
        drawn = torch.from_numpy(u).to(logits.device)
        tokens = sample(probs, drawn)
        margin = sample_margins(probs, drawn, tokens)
    else:
        tokens, margin = greedy(logits), greedy_margins(logits)
    found = {
        "tokens": tokens,
        "nll": _nats(logits, tokens),
        "best": greedy(logits),
        "margin": margin,
        "entropy": entropy(logits) / math.log(logits.shape[-1]),
        "doubt": 1 - logits.softmax(-1).amax(-1),
    }
    return Made(**{name: value.cpu().numpy() for name, value in found.items()})


def _nats(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the negative log-likelihood in nats, [n], of tokens int [n] under logits [n, V]."""
    return logits.logsumexp(-1) - logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
