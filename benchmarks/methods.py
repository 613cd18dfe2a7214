"""Table of each method's demands on device, cloud and link per image, from a run folder.

    ciar-sim run scenarios/method-table.yaml
    python -m benchmarks.methods runs/method-table

Figures are means over the images of a case. The last column is the share of tokens equal to those that base decodes greedily.
docs/methods/README.md has the table and explains its columns.
"""

from pathlib import Path

import click
import pandas as pd

# title, column of summary.csv, units of the column in one of the title
COLUMNS = (
    ("cloud calls %", "cloud_call_pct", 1),
    ("calls", "calls", 1),
    ("kB up", "bytes_up", 1000),
    ("kB down", "bytes_down", 1000),
    ("device passes", "device_passes", 1),
    ("cloud passes", "cloud_passes", 1),
    ("tokens as base %", "base_greedy_pct", 1),
)


def method_table(summary: pd.DataFrame) -> str:
    """Return a Markdown table with a row per case of a run's summary."""
    lines = ["| method | " + " | ".join(title for title, _, _ in COLUMNS) + " |", "|---|" + "--:|" * len(COLUMNS)]
    for row in summary.to_dict("records"):
        numbers = (f"{row[name] / units:,.1f}" for _, name, units in COLUMNS)
        lines.append(f"| {row['method']} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(folder: Path) -> None:
    """Print the table of a run FOLDER."""
    if not (folder / "summary.csv").is_file():
        raise click.UsageError(f"{folder / 'summary.csv'}: no such file; FOLDER is a run folder of ciar-sim")
    click.echo(method_table(pd.read_csv(folder / "summary.csv")))


if __name__ == "__main__":
    main()
