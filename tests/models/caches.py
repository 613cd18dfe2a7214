"""Checks of a session's KV caches after roll-backs, gathers and trees against a fresh prefill of its tokens."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from models import recorder
from models.backend import Backend
from models.kv_cache import KVCache
from models.pair import Pair
from models.text import left_pad
from models.transformer import Transformer
from simulator.protocol.ops import ROLES
from simulator.protocol.recording import FORWARD, Recording


@contextmanager
def last_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Backend]]:
    """Yield a list that collects the backends created by recorders inside the context."""
    made: list[Backend] = []

    def make(pair: Pair, slots: int, spare: int = 0) -> Backend:
        made.append(Backend(pair, slots, spare))
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(recorder, "Backend", make)
        yield made


def committed(recording: Recording, role: str) -> int:
    """Return the number of image positions in a role's cache before its last pass. All of them hold final tokens."""
    forward = recording.ops[(recording.ops["kind"] == FORWARD) & (recording.ops["what"] == ROLES.index(role))]
    return int(forward["kv_tokens"][-1])


@torch.inference_mode()
def prefill(pair: Pair, model: Transformer, tokens: list[int], prompt: str) -> tuple[KVCache, torch.Tensor]:
    """Return a cache of two rows, conditional and unconditional, after one pass over caption and tokens, and the states [2, n, D].

    The device's caption rows are rounded to fp16, as on the wire.
    """
    slots = pair.manifest.caption_slots
    caption = pair.text.encode(prompt)
    rows, mask = left_pad(caption if model is pair.cloud else caption.half().float(), slots)
    cache = KVCache(model.config, 2, dtype=pair.dtype)
    cache.caption_mask[:] = mask
    captions = torch.stack([model.embed_caption(rows), model.embed_caption(model.null_caption(1)[0])])
    embeds = torch.cat([captions, model.embed_tokens(torch.tensor(tokens, dtype=torch.long)).expand(2, -1, -1)], dim=1)
    n = torch.full((2,), embeds.shape[1])
    return cache, model.step(cache, torch.arange(2), torch.zeros(2, dtype=torch.long), embeds, n)


def assert_cache_is_that_of_its_tokens(
    pair: Pair, backend: Backend, recording: Recording, prompt: str, role: str
) -> None:
    """Compare slot 0 of the backend with a prefill of the recording's tokens, up to the length before the last pass."""
    model = backend.models[role]
    assert isinstance(model, Transformer)
    held = committed(recording, role)
    assert held > 0
    fresh, _ = prefill(pair, model, recording.tokens[:held].tolist(), prompt)
    columns = pair.manifest.caption_slots + held
    for got, expected in ((backend.caches[role].k, fresh.k), (backend.caches[role].v, fresh.v)):
        torch.testing.assert_close(got[:, :2, :, :columns], expected[:, :, :, :columns], atol=1e-10, rtol=0)
