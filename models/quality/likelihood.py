"""Likelihood of a finished image under the cloud model, token by token."""

from collections.abc import Sequence

import numpy as np
import torch

from models.attention import at_least_float32
from models.pair import Pair
from models.sampling import greedy, guide
from models.text import left_pad
from simulator.protocol.recording import SessionSpec

CHUNK = 8  # sessions per pass: limits memory to CHUNK * 2 rows of [T, V] float32


def score_tokens(
    pair: Pair, sessions: Sequence[tuple[SessionSpec, Sequence[int]]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Teacher-force finished images through the cloud, without interval features, at each session's own guidance.

    Returns:
        Per session (nll float32 [T], argmax uint16 [T]): nats of each token under the guided distribution at temperature 1 given the tokens
        before it, and the most likely token of that distribution.
    """
    results: list[tuple[np.ndarray, np.ndarray]] = []
    for begin in range(0, len(sessions), CHUNK):
        chunk = sessions[begin : begin + CHUNK]
        slots = pair.manifest.caption_slots
        padded = [left_pad(pair.text.encode(spec.prompt), slots) for spec, _ in chunk]
        device = pair.torch_device
        caption = torch.stack([rows for rows, _ in padded]).to(device)  # [B, slots, caption_dim]
        mask = torch.stack([valid for _, valid in padded]).to(device)  # [B, slots]
        tokens = torch.tensor([list(ids) for _, ids in chunk], device=device)  # [B, T]
        first = pair.manifest.caption_slots - 1  # position that predicts token 0
        hidden = pair.cloud.hidden(tokens[:, :-1], caption, mask)[:, first:]  # [B, T, D]
        scale = torch.tensor([spec.decoding["guidance"] for spec, _ in chunk])  # [B]
        if bool((scale > 1).any()):
            null = pair.cloud.hidden(tokens[:, :-1], *pair.cloud.unconditional(caption, mask))[:, first:]
            # The head is linear, so guidance of hidden states equals guidance of logits, with one pass of the head instead of two.
            wide = at_least_float32(hidden), at_least_float32(null)
            hidden = guide(*wide, scale.to(device).unsqueeze(-1)).to(hidden.dtype)
        logits = pair.cloud.logits(hidden)  # [B, T, V]
        nll = logits.logsumexp(-1) - logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)  # [B, T]
        best = greedy(logits)  # [B, T]
        results += [
            (n.float().cpu().numpy(), b.cpu().numpy().astype(np.uint16)) for n, b in zip(nll, best, strict=True)
        ]
    return results
