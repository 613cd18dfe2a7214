"""The log of a training stage: loss.csv, and loss.png drawn from it."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from simulator.core.errors import WeightsError, first_line
from simulator.core.files import write_atomically


class LossLog:
    """loss.csv: one row per logged step. On resuming, rows of steps that will be repeated are dropped.

    Raises:
        WeightsError: the file is not such a table.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if path.exists() and step > 0:
            self.rows = [row for row in self._read() if int(row["step"]) < step]

    def _read(self) -> list[dict[str, str]]:
        line = 1
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file, strict=True)
                if not {"step", "loss"} <= set(reader.fieldnames or ()):
                    raise ValueError("no columns step and loss")
                rows = []
                for row in reader:
                    line = reader.line_num
                    if None in row or None in row.values():
                        raise ValueError("another number of columns")
                    int(row["step"]), float(row["loss"])
                    rows.append(row)
        except (ValueError, KeyError, csv.Error, OSError) as error:
            raise WeightsError(
                f"{self.path}:{line}: not a log of losses ({first_line(error)}); delete it to continue without its rows"
            ) from error
        return rows

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.append({"step": str(step), **{name: f"{value:.6g}" for name, value in values.items()}})

    def write(self) -> None:
        # A stage may log different values at different steps.
        columns = dict.fromkeys(name for row in self.rows for name in row)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(columns) or ["step"])
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, text.getvalue().encode())

    def plot(self, path: Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        losses = [float(row["loss"]) for row in self.rows]
        axes.plot([int(row["step"]) for row in self.rows], losses)
        axes.set(xlabel="step", ylabel="loss", yscale="log" if min(losses, default=0) > 0 else "linear")
        write_atomically(path, lambda file: figure.savefig(file, dpi=120, format="png"))
