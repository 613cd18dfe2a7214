"""A session whose reply misses its deadline: the device finishes alone, and everything before is unchanged."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.pair import Pair
from simulator.core.errors import RecordingError
from simulator.protocol.methods import METHODS, Decoding
from simulator.protocol.ops import ROLES
from simulator.protocol.recording import AWAIT, CLOUD, FORWARD, FROM_CLOUD, FROM_DEVICE, FROM_FALLBACK, SEND, Recording
from tests.models.test_methods import record, spec

GATED: list[tuple[str, dict[str, Any]]] = [
    ("ciar", {"threshold": 0.02, "prefix_rate": 0.06}),
    ("ciar", {"threshold": 0.02, "variant": "verify", "upload": "eager"}),
    ("random", {"upload_rate": 0.5}),
    ("entropy-lens", {}),
]


def position_of(recording: Recording, call: int) -> int:
    """Return the number of image tokens on the device when it awaits `call`, from its passes and the prefix."""
    device = recording.ops[recording.ops["side"] != CLOUD]
    index = int(np.flatnonzero((device["kind"] == AWAIT) & (device["call"] == call))[0])
    passes = device[:index]
    passes = passes[(passes["kind"] == FORWARD) & (passes["what"] == ROLES.index("device"))]
    return int(passes["kv_tokens"][-1] + passes["new_tokens"][-1])


@pytest.mark.parametrize(("name", "settings"), GATED, ids=lambda v: v if isinstance(v, str) else "")
def test_a_missed_deadline_leaves_the_rest_to_the_device(tiny_pair: Pair, name: str, settings: dict[str, Any]) -> None:
    whole_spec = spec(tiny_pair, name, settings, text_encoder="device")
    whole = record(tiny_pair, whole_spec)[0]
    awaited = whole.ops["call"][whole.ops["kind"] == AWAIT].tolist()
    assert len(awaited) > 3
    missed = awaited[3]
    branch = record(tiny_pair, replace(whole_spec, missed_calls=(missed,)))[0]
    at = position_of(whole, missed)
    assert branch.tokens[:at].tolist() == whole.tokens[:at].tolist()
    assert branch.decided_by[:at].tolist() == whole.decided_by[:at].tolist()
    assert whole.decided_by[at] == FROM_CLOUD
    assert set(branch.decided_by[at:].tolist()) == {FROM_FALLBACK}
    # Up to the await both recordings are the same. The missed call is the last one sent.
    device, before = branch.ops[branch.ops["side"] != CLOUD], whole.ops[whole.ops["side"] != CLOUD]
    index = int(np.flatnonzero((device["kind"] == AWAIT) & (device["call"] == missed))[0])
    assert np.array_equal(device[: index + 1], before[: index + 1])
    assert branch.ops["call"][branch.ops["kind"] == SEND].max() == missed
    # The rest takes one device pass per token. The first was made before the call.
    passes = device[index + 1 :]
    assert np.count_nonzero(passes["kind"] == FORWARD) == len(branch.tokens) - at - 1


def test_a_prefix_that_never_comes_is_device_only(tiny_pair: Pair) -> None:
    ciar = spec(tiny_pair, "ciar", {"threshold": 0.02, "prefix_rate": 0.2}, text_encoder="device")
    alone = record(tiny_pair, spec(tiny_pair, "device-only", {}, text_encoder="device"))[0]
    branch = record(tiny_pair, replace(ciar, missed_calls=(0,)))[0]
    assert branch.tokens.tolist() == alone.tokens.tolist()
    assert set(branch.decided_by.tolist()) == {FROM_FALLBACK}
    assert set(alone.decided_by.tolist()) == {FROM_DEVICE}


def test_what_cannot_be_given_up_is_waited_for(tiny_pair: Pair) -> None:
    for name, settings, decoding in (
        ("base", {}, {}),  # no model runs on the device
        ("ciar", {}, {"text_encoder": "cloud"}),  # the device needs the caption rows
    ):
        with pytest.raises(RecordingError, match="always waited for"):
            record(tiny_pair, replace(spec(tiny_pair, name, settings, **decoding), missed_calls=(0,)))


def test_an_outcome_of_an_await_that_never_comes_is_refused(tiny_pair: Pair) -> None:
    with pytest.raises(RecordingError, match="call 7 never waited for it"):
        record(tiny_pair, replace(spec(tiny_pair, "code", {"prefix_rate": 0.3}), missed_calls=(7,)))


@pytest.mark.parametrize("text_encoder", ["cloud", "device"])
@pytest.mark.parametrize("name", METHODS)
def test_only_methods_that_say_so_have_replies_to_do_without(tiny_pair: Pair, name: str, text_encoder: str) -> None:
    settings = {"k": 10} if name.startswith(("lantern", "vvs")) else {}
    session = spec(tiny_pair, name, settings, text_encoder=text_encoder)
    ops = record(tiny_pair, session)[0].ops
    awaits = ops[ops["kind"] == AWAIT]
    able = (
        METHODS[name].settings.model_validate(session.settings).can_fall_back(Decoding.model_validate(session.decoding))
    )
    assert bool(awaits["what"].any()) == able
    for call in awaits["call"][awaits["what"] == 1][
        :2
    ].tolist():  # a marked reply can be missed, and then decides nothing
        branch = record(tiny_pair, replace(session, missed_calls=(call,)))[0]
        assert FROM_FALLBACK in branch.decided_by
        assert not branch.ops["decides"][(branch.ops["side"] == CLOUD) & (branch.ops["call"] == call)].any()
