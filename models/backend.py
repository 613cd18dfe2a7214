"""Batched execution of the ops that programs wait for: forward passes with KV caches and guidance, and other computations.

The session in slot i owns rows 2i (conditional) and 2i + 1 (unconditional, used only with guidance) of every model's cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.attention import at_least_float32
from models.eagle import CAPTION_TOKEN, EagleDrafter
from models.interval import inter_fuse, sampled_bounds
from models.kv_cache import CachedDecoder, CachedRows, KVCache
from models.methods.scores import all_scores
from models.methods.session import Step
from models.pair import Pair
from models.sampling import filter_probs, greedy, greedy_margins, guide, sample, sample_margins
from models.text import left_pad
from models.transformer import Transformer
from simulator.core.errors import WeightsError
from simulator.protocol.ops import Forward
from simulator.protocol.recording import SCORES

OF_INTERVALS = ("u", "u_raw", "omega", "sigma", "lower_top")  # scores that need an Inter-Head


@dataclass(frozen=True)
class PassRequest:
    """One session's pass and how its next token is picked.

    Attributes:
        slot: the session's slot.
        op: the pass.
        start: image positions in the cache before the pass.
        guidance: guidance scale; above 1 the pass also has an unconditional row.
        temperature: sampling temperature.
        top_k: 0 is off.
        top_p: 1 is off.
        u: keyed uniform draw for the picked position; None picks the arg max.
    """

    slot: int
    op: Forward
    start: int
    guidance: float
    temperature: float
    top_k: int
    top_p: float
    u: float | None

    @property
    def rows(self) -> int:
        return 2 if self.guidance > 1 else 1


class Backend:
    """The pair's models with KV caches for `slots` sessions.

    Args:
        pair: the models.
        slots: sessions at once.
        spare: cache columns past the end of the image, for draft trees.
    """

    def __init__(self, pair: Pair, slots: int, spare: int = 0) -> None:
        self.pair = pair
        self.models: dict[str, CachedDecoder] = {"cloud": pair.cloud}
        if pair.device_model is not None:
            self.models["device"] = pair.device_model.transformer
        if pair.drafter is not None:
            self.models["drafter"] = pair.drafter
        self.caches = {
            role: KVCache(model.config, 2 * slots, pair.torch_device, pair.dtype, spare)
            for role, model in self.models.items()
        }

    def forward(self, role: str, requests: Sequence[PassRequest]) -> list[Step]:
        """Run one pass per request in one batch. Raises WeightsError for a model that the pair lacks, or logits that are not finite.

        Args:
            role: which model, see `ROLES`.
            requests: at most one per slot.

        Returns:
            A step per request, in their order.
        """
        if role not in self.models:
            raise WeightsError(f"the pair {self.pair.manifest.name} has no {role} model")
        order = sorted(range(len(requests)), key=lambda index: (self._new(requests[index]), requests[index].slot))
        group = [requests[index] for index in order]  # requests with equally many new positions are adjacent
        steps = dict(zip(order, self._read(role, group, self._pass(role, group)), strict=True))
        return [steps[index] for index in range(len(requests))]

    def opening_rows(self, slot: int, passes: int) -> CachedRows:
        """Return a copy of the cloud's cache rows of a session as they are after its first `passes` passes, the caption's included."""
        columns = self.models["cloud"].columns(self.pair.manifest.caption_slots + passes - 1)
        return self.caches["cloud"].read(slice(2 * slot, 2 * slot + 2), columns)

    def open_with(self, slot: int, rows: CachedRows) -> None:
        """Write cache rows copied by `opening_rows` into the rows of another session."""
        self.caches["cloud"].write(slice(2 * slot, 2 * slot + 2), rows)

    def _new(self, request: PassRequest) -> int:
        """Return how many columns a pass adds to each of its cache rows."""
        return request.op.new_positions + (self.pair.manifest.caption_slots if request.op.caption is not None else 0)

    def _pass(self, role: str, group: Sequence[PassRequest]) -> Tensor:
        """Return the hidden states of every row of the batch, [R, n, D], in the group's order, conditional before unconditional."""
        model, cache = self.models[role], self.caches[role]
        slots = self.pair.manifest.caption_slots
        rows = torch.tensor([2 * r.slot + guided for r in group for guided in range(r.rows)])  # [R]
        repeats = torch.tensor([r.rows for r in group])
        new = torch.tensor([self._new(r) for r in group]).repeat_interleave(repeats)  # [R]
        start = torch.tensor([0 if r.op.caption is not None else slots + r.start for r in group]).repeat_interleave(
            repeats
        )  # [R]
        moves = [
            (2 * r.slot + guided, slots + source, slots + r.start - len(r.op.gather) + index)
            for r in group
            for guided in range(r.rows)
            for index, source in enumerate(r.op.gather)
        ]
        if moves:
            cache.move(*zip(*moves, strict=True))
        if isinstance(model, EagleDrafter):
            embeds = self._embed_drafts(model, cache, group, rows, int(new.max()))  # [R, n, D]
        else:
            assert isinstance(model, Transformer)
            embeds = self._embed(model, cache, group, rows, int(new.max()))  # [R, n, D]
        trees = [r.op.tree for r in group for _ in range(r.rows)]
        return model.step(cache, rows, start, embeds, new, trees)

    def _embed(
        self, model: Transformer, cache: KVCache, group: Sequence[PassRequest], rows: Tensor, longest: int
    ) -> Tensor:
        """Return the inputs [R, longest, D]: caption rows, then token embeddings plus interval features. Set the masks of new captions."""
        slots = self.pair.manifest.caption_slots
        ids = np.zeros((len(group), longest), np.int64)
        for index, request in enumerate(group):
            offset = slots if request.op.caption is not None else 0
            ids[index, offset : offset + len(request.op.tokens)] = request.op.tokens
        embeds = model.embed_tokens(torch.from_numpy(ids).to(self.pair.torch_device))
        for index, request in enumerate(group):
            if request.op.features is not None:
                offset = slots if request.op.caption is not None else 0
                features = torch.as_tensor(request.op.features, dtype=embeds.dtype, device=embeds.device)
                embeds[index, offset : offset + len(features)] += features
        repeats = torch.tensor([r.rows for r in group])
        embeds = embeds.repeat_interleave(repeats.to(embeds.device), dim=0)  # [G, longest, D] -> [R, longest, D]
        for index, request in enumerate(group):
            if request.op.caption is not None:
                first = int(repeats[:index].sum())
                halves = self._captions(model, request.op.caption)
                for half, (text, valid) in enumerate(halves[: request.rows], start=first):
                    cache.caption_mask[rows[half]] = valid[0]
                    embeds[half, :slots] = model.embed_caption(text)[0]
        return embeds

    def _captions(self, model: Transformer, caption: np.ndarray) -> list[tuple[Tensor, Tensor]]:
        """Return the padded rows [1, slots, caption_dim] and the mask [1, slots] of a caption and of its unconditional half.

        caption: float32 [n, caption_dim], the valid rows.
        """
        padded = left_pad(torch.from_numpy(caption), self.pair.manifest.caption_slots)  # [slots, caption_dim], [slots]
        rows, mask = (one.unsqueeze(0).to(self.pair.torch_device) for one in padded)
        return [(rows, mask), model.unconditional(rows, mask)]

    def _embed_drafts(
        self, model: EagleDrafter, cache: KVCache, group: Sequence[PassRequest], rows: Tensor, longest: int
    ) -> Tensor:
        """Return the drafter's inputs [R, longest, D]: at each position the next token and the cloud model's feature there.

        If the drafter reads the prompt, set the masks of new captions.
        """
        slots, device, dtype = self.pair.manifest.caption_slots, self.pair.torch_device, self.pair.dtype
        count = sum(r.rows for r in group)
        ids = torch.full((count, longest), CAPTION_TOKEN)
        features = torch.zeros(count, longest, model.config.dim, dtype=dtype, device=device)
        row = 0
        for request in group:
            op, mine = request.op, slice(row, row + request.rows)
            first = slots - 1 if op.caption is not None else 0  # position of the first token
            ids[mine, first : first + len(op.tokens)] = torch.tensor(op.tokens, dtype=torch.long)
            if op.caption is not None:
                caption = torch.as_tensor(op.caption, dtype=dtype, device=device)  # [rows, n, D]
                features[mine, slots - caption.shape[1] : slots] = caption
            after = first + (op.caption is not None)  # position of the first feature in op.features
            if after < first + len(op.tokens):
                features[mine, after : first + len(op.tokens)] = torch.as_tensor(
                    op.features, dtype=dtype, device=device
                )
            row += request.rows
        embedded = model.embed_tokens(ids.to(device), self.pair.cloud)
        row = 0
        for request in group:
            if model.reads_prompt and request.op.caption is not None:
                halves = self._captions(self.pair.cloud, request.op.prompt)
                for half, (text, valid) in enumerate(halves[: request.rows], start=row):
                    cache.caption_mask[rows[half]] = valid[0]
                    following = text[0, 1:]  # each position reads the token after it
                    embedded[half, : slots - 1] = model.embed_prompt(following, self.pair.cloud)
            row += request.rows
        return model.inputs(embedded, features)

    def _read(self, role: str, group: Sequence[PassRequest], hidden: Tensor) -> list[Step]:
        """Return a step per session from hidden states [R, n, D]: the picked token and, on the device, its interval and scores."""
        guided, counts, states = self._guided(role, group, hidden)
        ends = np.cumsum(counts).tolist()
        last = guided if len(guided) == len(group) else guided[[end - 1 for end in ends]]  # [G, V]
        if not bool(last.isfinite().all()):
            raise WeightsError(
                f"the pair {self.pair.manifest.name}: the {role}'s logits are not finite in {self.pair.dtype}: "
                "its weights overflow this type"
            )
        tokens, margins = self._pick(group, last)
        steps = []
        for g, r in enumerate(group):
            mine = guided[ends[g] - counts[g] : ends[g]] if r.op.outputs == "all" else last[g]
            steps.append(Step(tokens[g], mine, states[g][0, -1], states=states[g], margin=margins[g]))
        if role == "cloud":
            picked = torch.tensor(tokens, device=last.device).unsqueeze(-1)  # [G, 1]
            nll = (last.logsumexp(-1) - last.gather(-1, picked).squeeze(-1)).tolist()
            for step, nats, best in zip(steps, nll, greedy(last).tolist(), strict=True):
                step.nll, step.best = nats, best
        if role == "device":
            self._add_intervals(group, steps, last)
        return steps

    def _guided(
        self, role: str, group: Sequence[PassRequest], hidden: Tensor
    ) -> tuple[Tensor, list[int], list[Tensor]]:
        """Return the guided logits at all requested positions.

        Returns:
            Logits [P, V] of all sessions, how many of the P positions belong to each session, and each session's hidden states
            [rows, n or 1, D].
        """
        model = self.pair.cloud if role == "drafter" else self.models[role]
        assert isinstance(model, Transformer)
        slots = self.pair.manifest.caption_slots
        rows: list[int] = []  # of each requested position, the conditional row of `hidden`
        others: list[int] = []  # its unconditional row; without guidance the same one
        places: list[int] = []  # its position in the pass
        counts: list[int] = []
        states: list[Tensor] = []
        row = 0
        for r in group:
            new = self._new(r)
            wanted = new if r.op.outputs == "all" else 1
            states.append(hidden[row : row + r.rows, new - wanted : new])
            # In a pass with a caption, the last caption slot is the first position that predicts a token.
            first = slots - 1 if wanted > 1 and r.op.caption is not None else new - wanted
            counts.append(new - first)
            rows += [row] * counts[-1]
            others += [row + r.rows - 1] * counts[-1]
            places += range(first, new)
            row += r.rows
        scale = torch.tensor([r.guidance for r, n in zip(group, counts, strict=True) for _ in range(n)]).to(
            hidden.device
        )  # [P]
        conditional, unconditional = (at_least_float32(hidden[x, places]) for x in (rows, others))  # each [P, D]
        # The head is linear, so guiding hidden states equals guiding logits and needs one head product instead of two.
        return model.logits(guide(conditional, unconditional, scale).to(hidden.dtype)), counts, states

    def _add_intervals(self, group: Sequence[PassRequest], steps: Sequence[Step], logits: Tensor) -> None:
        """Add radius, bounds and scores of the next token to each step. logits: [G, V]."""
        radius = self._radius(group, torch.stack([step.hidden for step in steps]))  # [G, V], assumption A5
        lower, upper = inter_fuse(logits, radius)  # [G, V]
        scores = all_scores(logits, lower, upper).cpu().numpy()  # [G, SCORES]
        if not self.pair.manifest.bounds:  # no Inter-Head: the scores of intervals are undefined
            scores[:, [SCORES.index(name) for name in OF_INTERVALS]] = np.nan
        for g, step in enumerate(steps):
            step.scores, step.lower, step.upper, step.radius = scores[g], lower[g], upper[g], radius[g]

    def _radius(self, group: Sequence[PassRequest], hidden: Tensor) -> Tensor:
        """Return the radius of every logit, [G, V], from each session's radius matrix (`Forward.bounds`). hidden: [G, D]."""
        device = self.pair.device
        if not device.radii:
            return torch.zeros(
                len(group), device.config.vocab_size, dtype=at_least_float32(hidden).dtype, device=hidden.device
            )
        names = [r.op.bounds or next(iter(device.radii)) for r in group]
        if len(set(names)) == 1:
            return device.radius(hidden, names[0])
        radius = torch.empty(
            len(group), device.config.vocab_size, dtype=at_least_float32(hidden).dtype, device=hidden.device
        )
        for name in sorted(set(names)):
            mine = [g for g, other in enumerate(names) if other == name]
            radius[mine] = device.radius(hidden[mine], name)
        return radius

    @staticmethod
    def _pick(group: Sequence[PassRequest], guided: Tensor) -> tuple[list[int], list[float]]:
        """Return each session's next token and its margin (`Decisions`), from guided logits [G, V].

        The token is the arg max, or drawn from the filtered distribution.
        """
        sampled = [g for g, r in enumerate(group) if r.u is not None]
        tokens = torch.zeros(len(group), dtype=torch.long, device=guided.device)
        margins = torch.zeros(len(group), dtype=torch.float64, device=guided.device)
        if len(sampled) < len(group):
            best = [g for g, r in enumerate(group) if r.u is None]
            tokens[best], margins[best] = greedy(guided[best]), greedy_margins(guided[best])
        if sampled:
            chosen = [group[g] for g in sampled]
            probs = filter_probs(
                guided[sampled],
                torch.tensor([r.temperature for r in chosen]),
                torch.tensor([r.top_k for r in chosen]),
                torch.tensor([r.top_p for r in chosen]),
            )
            u = torch.tensor([r.u for r in chosen], dtype=torch.float64, device=guided.device)
            tokens[sampled] = ids = sample(probs, u)
            margins[sampled] = sample_margins(probs, u, ids)
        return tokens.tolist(), margins.tolist()

    def compute(self, kind: str, payloads: Sequence[Any]) -> list[Any]:
        """Run one kind of `Compute` for all payloads.

        Returns:
            Per payload: caption rows float32 [n, caption_dim], an interval feature float32 [D], lower and upper bounds [V], or an image
            uint8 [H, W, 3].
        """
        match kind:
            case "caption_encoder":
                return [self.pair.text.encode(caption).float().cpu().numpy() for caption in payloads]
            case "phi":
                hidden = torch.stack([step.hidden for step in payloads])  # [G, D]
                lower, upper = (torch.stack([getattr(step, side) for step in payloads]) for side in ("lower", "upper"))
                return list(self.pair.phi(hidden, lower, upper).float().cpu().numpy())
            case "interval_samples":
                return [sampled_bounds(step.logits, step.radius, torch.from_numpy(noise)) for step, noise in payloads]
            case "image_decoder":
                codes = torch.tensor(payloads, device=self.pair.torch_device)  # [G, T]
                return list(self.pair.tokenizer.to_bytes(self.pair.tokenizer.decode_codes(codes)).cpu().numpy())
        raise AssertionError(kind)
