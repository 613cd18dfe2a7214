"""The names for use from Python."""

import simulator


def test_public_names_are_sorted_few_and_there() -> None:
    assert simulator.__all__ == sorted(simulator.__all__)
    assert len(simulator.__all__) <= 16
    for name in simulator.__all__:
        assert getattr(simulator, name).__doc__, name
