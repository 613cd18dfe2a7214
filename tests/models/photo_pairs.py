"""A tiny pair of photographs with a judge, trained in a second on a folder of coloured noise."""

from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from ciar_sim.cli.main import main
from tests.conftest import without_drawing
from tests.models import toy
from tests.models.test_photos import COLOURS, Table, training, write

KINDS = ("Tshirts", "Casual Shoes")


def table(count: int) -> Table:
    """Return rows with two colours, two types and two words from the title. A quarter of them is held out."""
    colours, words = list(COLOURS), ("printed", "striped", "washed", "polo", "denim")
    return [
        [
            str(10 + n),
            "held-out" if n % 4 == 3 else "train",
            "Apparel",
            "Wear",
            KINDS[n // 8 % 2],
            colours[n // 4 % 2],
            "Casual",
        ]
        + [f"Acme {words[n % 5]} {words[n // 5 % 5]}"]
        for n in range(count)
    ]


def settings() -> dict[str, Any]:
    """Return the settings of a training file with all stages and a judge."""
    judge = {
        "batch_images": 8,
        "widths": [8, 8, 8],
        "training": {"steps": 30, "learning_rate": 1e-2, "warmup_steps": 1, "ema_decay": 0.5},
    }
    return {**training(), "judge": judge}


def train(root: Path, photographs: int = 80) -> Path:
    """Train and return the folder of the exported pair. The training folder `run` is next to it."""
    (root / "own.yaml").write_text(yaml.safe_dump(settings()))
    folder = write(root / "in", table(photographs))
    command = ["train", root / "own.yaml", "--data", folder, "--out", root / "run", "--export", root / "pair"]
    with toy.quick_evaluation(), without_drawing():
        result = CliRunner().invoke(main, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    return root / "pair"
