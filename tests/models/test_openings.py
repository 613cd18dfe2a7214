"""Forward passes at the start of several sessions are made once, and every session equals one recorded alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from models.backend import Backend, PassRequest
from models.kv_cache import CachedRows
from models.methods import CloudState, Method, make_method
from models.methods.gated import Gated
from models.methods.session import Step
from models.openings import Opening, Planned, plan
from models.pair import Pair
from simulator.protocol.messages import Message, Start, Started, pack_floats, pack_ids
from simulator.protocol.methods import EntropyLensSettings, prefix_length
from simulator.protocol.ops import CloudProgram
from simulator.protocol.recording import SessionSpec

from .test_methods import PROMPTS, record, spec

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("ciar", {"threshold": 0.02, "prefix_rate": 0.0}),
    ("ciar", {"threshold": 0.02, "prefix_rate": 0.25}),
    ("ciar", {"threshold": 0.02, "prefix_rate": 0.5}),
    ("ciar", {"threshold": 0.3, "prefix_rate": 0.25, "revise": 0.02, "upload": "eager"}),
    ("entropy-lens", {"prefix_rate": 0.25}),
    ("code", {"prefix_rate": 0.75}),
    ("base", {}),
    ("base", {"deliver": "image"}),
    ("speculative", {}),
]
Counted = list[tuple[str, int]]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Return a list that records the role and number of sessions of every forward pass."""
    made: Counted = []
    forward = Backend.forward

    def counting(self: Backend, role: str, requests: Sequence[PassRequest]) -> list[Step]:
        made.append((role, len(requests)))
        return forward(self, role, requests)

    monkeypatch.setattr(Backend, "forward", counting)
    return made


def cloud_passes(made: Counted) -> int:
    return sum(count for role, count in made if role == "cloud")


def all_settings(pair: Pair, **decoding: Any) -> list[SessionSpec]:
    return [spec(pair, name, settings, prompt, **decoding) for name, settings in SETTINGS for prompt in PROMPTS]


@pytest.mark.parametrize(
    ("max_batch", "decoding"),
    [(3, {}), (64, {"guidance": 1.0, "text_encoder": "device", "cloud": "greedy"})],
    ids=["few", "greedy"],
)
def test_what_sessions_share_changes_no_byte_of_them(
    tiny_pair: Pair, counted: Counted, monkeypatch: pytest.MonkeyPatch, decoding: dict[str, Any], max_batch: int
) -> None:
    specs = all_settings(tiny_pair, **decoding)
    with monkeypatch.context() as patch:
        patch.setattr("models.recorder.plan", lambda specs, *_: [Planned(one, 0, None) for one in specs])
        apart = record(tiny_pair, *specs, max_batch=64)
    without = cloud_passes(counted)
    counted.clear()
    together = record(tiny_pair, *specs, max_batch=max_batch)
    for one, first, second in zip(specs, apart, together, strict=True):
        assert first.to_bytes() == second.to_bytes(), one
    # For each prompt, base makes all tokens once. The others make only those after their shared prefix.
    tokens = tiny_pair.manifest.image_tokens
    shared = [prefix_length(s.get("prefix_rate", 1.0 if name == "base" else 0.0), tokens) for name, s in SETTINGS]
    assert without - cloud_passes(counted) == len(PROMPTS) * (sum(shared) - tokens)


def test_other_seeds_prompts_and_decodings_share_nothing(tiny_pair: Pair) -> None:
    one = spec(tiny_pair, "ciar", {"threshold": 0.3, "prefix_rate": 0.25})
    others = [
        replace(one, seed=1),
        replace(one, prompt=PROMPTS[1]),
        *(
            spec(tiny_pair, "code", {}, **d)
            for d in ({"guidance": 2.0}, {"cloud": "greedy"}, {"top_k": 5}, {"top_p": 0.5})
        ),
        spec(tiny_pair, "code", {}, temperature=0.7),
        spec(tiny_pair, "ciar", {"threshold": 0.3, "prefix_rate": 0.0}),
    ]
    assert all(planned.opening is None for planned in plan([one, *others], 16, 8))
    same = spec(tiny_pair, "code", {}, device="sampled", text_encoder="device")
    assert all(planned.opening is not None for planned in plan([one, same], 16, 8))


def test_a_session_that_gives_the_prefix_up_shares_it(tiny_pair: Pair) -> None:
    """Its device continues alone. Its cloud makes the prefix that others wait for, or others have made it."""
    ciar = spec(tiny_pair, "ciar", {"threshold": 0.3, "prefix_rate": 0.25}, text_encoder="device")
    specs = [ciar, replace(ciar, missed_calls=(0,))]
    for order in (specs, specs[::-1]):
        for one, recording in zip(order, record(tiny_pair, *order), strict=True):
            assert recording.to_bytes() == record(tiny_pair, one)[0].to_bytes()


def test_what_is_shared_is_kept_for_as_few_prompts_as_are_recorded_at_once(
    tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, seeds = (0.25, 0.5, 0.75), range(6)
    settings = [{"threshold": 0.3, "prefix_rate": rate} for rate in rates]
    specs = [spec(tiny_pair, "ciar", mine, seed=seed) for mine in settings for seed in seeds]
    order = [planned.spec.seed for planned in plan(specs, 16, 2)]
    assert order == [seed for two in ((0, 1), (2, 3), (4, 5)) for _ in rates for seed in two]

    finished: list[Opening] = []
    finish, kept = Opening.finish, []

    def noting(self: Opening, rows: CachedRows) -> None:
        finish(self, rows)
        finished.append(self)
        kept.append(sum(opening.rows is not None for opening in finished))

    monkeypatch.setattr(Opening, "finish", noting)
    record(tiny_pair, *specs, max_batch=2)
    assert [opening.length for opening in finished] == [8] * len(seeds)
    assert max(kept) <= 2 * 2  # current prompts, and those that start while their last sessions run
    assert not [opening for opening in finished if opening.rows is not None or opening.steps]


class Peculiar(Gated):
    """A method of another package that computes its prefix in another way."""

    def cloud(self, s: CloudState, message: Message) -> CloudProgram:
        if not isinstance(message, Start):
            return (yield from super().cloud(s, message))
        yield from s.open(message)
        for _ in range(message.count):
            step = yield s.decide("all")
            s.accept([int(step.logits[-1].argmin())])
        return Started(pack_ids(s.tokens), pack_floats(s.caption_rows))


def test_a_method_that_makes_its_prefix_in_another_way_shares_nothing(
    tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peculiar(name: str, settings: dict[str, Any], pair: Pair) -> Method:
        kind = EntropyLensSettings.model_validate(settings) if name == "entropy-lens" else None
        return make_method(name, settings, pair) if kind is None else Peculiar(kind, pair)

    monkeypatch.setattr("models.recorder.make_method", peculiar)
    own = spec(tiny_pair, "entropy-lens", {"prefix_rate": 0.5})
    others = [spec(tiny_pair, "code", {"prefix_rate": rate}) for rate in (0.25, 0.5)]
    alone = {one.key(): record(tiny_pair, one)[0].to_bytes() for one in (own, *others)}
    for order in ([own, *others], [*others, own]):  # it comes first, or last
        for one, recording in zip(order, record(tiny_pair, *order), strict=True):
            assert recording.to_bytes() == alone[one.key()]
