"""Lossless methods as whole programs: their images follow the cloud model's distribution, and a wrong rule is detected.

`python -m tests.models.law` does the same with 50,000 images a case.
"""

import numpy as np
import pytest

from models.pair import Pair
from models.recorder import Recorder
from simulator.protocol.methods import METHODS, Decoding
from simulator.protocol.recording import SessionSpec
from tests.models.law import CODES, DECODING, GRID, LOSSLESS, PROMPT, WRONG, images, law_of_images, make_pair, p_value
from tests.models.test_speculative import FALSE_ALARMS

RUNS = 400


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("pairs") / "law")


def test_the_law_is_one_of_images_and_knows_the_filters(pair: Pair) -> None:
    law = law_of_images(pair)
    assert law.shape == (CODES ** (GRID * GRID),)
    assert law.sum() == pytest.approx(1.0, abs=1e-12)
    first = law.reshape(CODES, -1).sum(-1)
    assert np.count_nonzero(first) <= 4  # top-k 4 of five codes


@pytest.mark.parametrize("case", LOSSLESS)
def test_images_follow_the_law_of_the_cloud(pair: Pair, case: str) -> None:
    assert p_value(pair, case, RUNS) > FALSE_ALARMS


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_rule_is_found_out(pair: Pair, case: str) -> None:
    assert p_value(pair, case, RUNS) < FALSE_ALARMS


def test_remembered_passes_change_no_token(pair: Pair) -> None:
    """The images are those of the recorder with its own batches."""
    name, settings = LOSSLESS["eagle2"]
    full, decoding = (
        METHODS[name].settings.model_validate(settings).model_dump(),
        Decoding.model_validate(DECODING).model_dump(),
    )
    specs = [
        SessionSpec("", name, METHODS[name].revision, full, decoding, PROMPT, seed, "float64") for seed in range(12)
    ]
    made = {spec.seed: recording.tokens.tolist() for spec, recording in Recorder(pair, 5).record(specs)}
    assert [made[seed] for seed in range(12)] == images(pair, name, settings, 12).tolist()
