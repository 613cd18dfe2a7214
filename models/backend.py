"""Batched execution of what programs wait for: forward passes with KV caches and guidance, and the other computations.

A session in slot i owns rows 2i (conditional) and 2i + 1 (unconditional, only used with guidance) of every model's cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.interval import inter_fuse, uncertainty
from models.methods.session import Step
from models.pair import Pair
from models.sampling import filter_probs, greedy, guide, sample
from models.text import left_pad
from models.transformer import KVCache, Transformer
from models.vq import to_uint8
from simulator.ops import Forward


@dataclass(frozen=True)
class PassRequest:
    """One session's pass and how its next token is picked.

    start: image positions held in the cache before it. u: the keyed uniform draw for the picked position, None for arg max.
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
    """The pair's models with caches for `slots` sessions."""

    def __init__(self, pair: Pair, slots: int) -> None:
        self.pair = pair
        self.models: dict[str, Transformer] = {"cloud": pair.cloud, "device": pair.device.transformer}
        self.caches = {
            role: KVCache(model.config, 2 * slots, pair.torch_device, pair.dtype) for role, model in self.models.items()
        }

    def forward(self, role: str, requests: Sequence[PassRequest]) -> list[Step]:
        """One pass per request, batched; requests of about the same number of new positions share a batch."""
        steps: list[Step | None] = [None] * len(requests)
        buckets: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            new = len(request.op.tokens) + (self.pair.manifest.caption_slots if request.op.caption is not None else 0)
            buckets.setdefault((new - 1).bit_length(), []).append(index)
        for members in buckets.values():
            group = [requests[index] for index in members]
            for index, step in zip(members, self._read(role, group, self._pass(role, group)), strict=True):
                steps[index] = step
        return [step for step in steps if step is not None]

    def _pass(self, role: str, group: Sequence[PassRequest]) -> Tensor:
        """Last hidden state of every row of the batch, [R, D]; rows in slot order, conditional before unconditional."""
        model, cache = self.models[role], self.caches[role]
        slots = self.pair.manifest.caption_slots
        rows = torch.tensor([2 * r.slot + guided for r in group for guided in range(r.rows)])  # [R]
        has_caption = [r.op.caption is not None for r in group]
        new = [len(r.op.tokens) + slots * first for r, first in zip(group, has_caption, strict=True)]
        start = [0 if first else slots + r.start for r, first in zip(group, has_caption, strict=True)]
        embeds = self._embed(model, group, max(new))  # [G, n, D]
        repeats = torch.tensor([r.rows for r in group])
        embeds = embeds.repeat_interleave(repeats.to(embeds.device), dim=0)  # [R, n, D]
        for index, request in enumerate(group):
            if request.op.caption is not None:
                first = int(repeats[:index].sum())
                features, mask = left_pad(torch.from_numpy(request.op.caption), slots)  # [slots, caption_dim], [slots]
                cache.caption_mask[rows[first : first + request.rows]] = mask.to(cache.caption_mask.device)
                embeds[first, :slots] = model.embed_caption(features.to(embeds.device))
                if request.rows == 2:
                    embeds[first + 1, :slots] = model.embed_caption(model.null_caption(1)[0])
        n_new = torch.tensor(new).repeat_interleave(repeats)
        hidden = model.step(cache, rows, torch.tensor(start).repeat_interleave(repeats), embeds, n_new)  # [R, n, D]
        return hidden[torch.arange(len(rows)), n_new - 1]

    def _embed(self, model: Transformer, group: Sequence[PassRequest], longest: int) -> Tensor:
        """Token embeddings plus interval features, [G, longest, D]; caption positions are left for the caller."""
        slots = self.pair.manifest.caption_slots
        ids = torch.zeros(len(group), longest, dtype=torch.long)
        for index, request in enumerate(group):
            offset = slots if request.op.caption is not None else 0
            ids[index, offset : offset + len(request.op.tokens)] = torch.tensor(request.op.tokens, dtype=torch.long)
        embeds = model.embed_tokens(ids.to(self.pair.torch_device))
        for index, request in enumerate(group):
            if request.op.features is not None:
                offset = slots if request.op.caption is not None else 0
                features = torch.as_tensor(request.op.features, dtype=embeds.dtype, device=embeds.device)
                embeds[index, offset : offset + len(features)] += features
        return embeds

    def _read(self, role: str, group: Sequence[PassRequest], hidden: Tensor) -> list[Step]:
        """From last hidden states [R, D] to a picked token per session, and its interval and scores on the device."""
        model = self.models[role]
        logits = model.logits(hidden)  # [R, V]
        first = torch.tensor(np.cumsum([0, *(r.rows for r in group)])[:-1])  # conditional row of each session
        other = first + torch.tensor([r.rows - 1 for r in group])  # its unconditional row, or the same one
        scale = torch.tensor([r.guidance for r in group], dtype=logits.dtype, device=logits.device)
        guided = guide(logits[first], logits[other], scale)  # [G, V]
        tokens = self._pick(group, guided)
        conditional = hidden[first]  # [G, D]
        if role != "device":
            return [Step(tokens[g], guided[g], conditional[g]) for g in range(len(group))]
        lower, upper = inter_fuse(guided, self.pair.device.radius(conditional))  # [G, V], assumption A5
        s = uncertainty(lower, upper)
        scores = torch.stack([s.u_tilde, s.u, s.omega, s.sigma, s.lower_top], dim=-1).float().cpu().numpy()  # [G, SCORES]
        return [Step(tokens[g], guided[g], conditional[g], scores[g], lower[g], upper[g]) for g in range(len(group))]

    @staticmethod
    def _pick(group: Sequence[PassRequest], guided: Tensor) -> list[int]:
        """The next token of each session from guided logits [G, V]: arg max, or the filtered distribution at its draw."""
        tokens = greedy(guided)
        sampled = [g for g, r in enumerate(group) if r.u is not None]
        if sampled:
            chosen = [group[g] for g in sampled]
            probs = filter_probs(
                guided[sampled],
                torch.tensor([r.temperature for r in chosen], device=guided.device),
                torch.tensor([r.top_k for r in chosen], device=guided.device),
                torch.tensor([r.top_p for r in chosen], device=guided.device),
            )
            tokens[sampled] = sample(probs, torch.tensor([r.u for r in chosen], dtype=torch.float64, device=guided.device))
        return tokens.tolist()

    def compute(self, kind: str, payloads: Sequence[Any]) -> list[Any]:
        """Results of one kind of `Compute`: caption rows float32 [n, caption_dim], f^I float32 [D], or uint8 [H, W, 3]."""
        match kind:
            case "caption_encoder":
                return [self.pair.text.encode(caption).float().cpu().numpy() for caption in payloads]
            case "phi":
                hidden = torch.stack([step.hidden for step in payloads])  # [G, D]
                lower, upper = (torch.stack([getattr(step, side) for step in payloads]) for side in ("lower", "upper"))
                return list(self.pair.phi(hidden, lower, upper).float().cpu().numpy())
            case "image_decoder":
                codes = torch.tensor(payloads, device=self.pair.torch_device)  # [G, T]
                return list(to_uint8(self.pair.tokenizer.decode_codes(codes)).cpu().numpy())
        raise AssertionError(kind)
