"""The names for use from Python."""

import simulator


def test_public_names_are_sorted_and_few() -> None:
    assert simulator.__all__ == sorted(simulator.__all__)
    assert len(simulator.__all__) <= 16
