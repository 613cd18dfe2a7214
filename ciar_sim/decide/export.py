"""A run in formats of others: an accept trace as JSON lines, KubeEdge-Ianvs' five metrics, tables for Markdown and LaTeX."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from ciar_sim.decide.bench import Bench, Means, Measured, Trial, candidate, condition
from ciar_sim.decide.rounds import call_seconds, rounds_of
from reports.load import load_run
from reports.words import significant
from simulator.experiment.loading import load_with_source
from simulator.results.tables import plain

ALL = 2**62  # requests
# Columns of the tables: heading, metric, and unit. A quality metric of the run follows.
TABLE = (
    ("latency", "latency_mean_s", "s"),
    ("p95", "latency_p95_s", "s"),
    ("speed-up", "speedup", "×"),
    ("cloud calls", "cloud_call_pct", "%"),
)


def export(folder: Path, form: str, means: Means) -> str:
    """The text of a run folder in one of `FORMS`.

    Args:
        folder: The run folder.
        form: accept-trace, ianvs, markdown or latex.
        means: Where its recordings are; what is missing of them is made again.

    Raises:
        CiarSimError: No run folder, or its scenario cannot be replayed.
    """
    return FORMS[form](folder, means)


def _replayed(folder: Path, means: Means) -> Iterator[tuple[Trial, Measured, pd.DataFrame]]:
    """Every case of a run with a row per round: request, round, drafted, accepted, milliseconds."""
    load_run(folder)  # refuses what is no run folder
    bench = Bench(load_with_source(folder / "scenario.yaml"), means)
    trial = bench.trial(bench.cases())
    measured = trial.measure(timeline_sessions=ALL)
    for case, result, _ in trial.results():
        recordings = [trial.recordings[key] for key in trial.plan.of_case[case.index]]
        rounds = [rounds_of(one) for one in recordings]
        seconds = call_seconds(result.spans)
        rows = [
            {
                "request": int(request),
                "round": number,
                "drafted": one.drafted,
                "accepted": one.accepted,
                "milliseconds": round(1e3 * seconds[request, one.call], 6),
            }
            for request, prompt in zip(result.columns["request"], result.columns["prompt"], strict=True)
            for number, one in enumerate(rounds[prompt])
            if (request, one.call) in seconds
        ]
        yield (
            trial,
            measured[case.index],
            pd.DataFrame(rows, columns=["request", "round", "drafted", "accepted", "milliseconds"]),
        )


def _accept_trace(folder: Path, means: Means) -> str:
    lines = []
    for _, one, rounds in _replayed(folder, means):
        front = {"method": candidate(one.case), **condition(one.case)}
        lines += [json.dumps({**front, **row}) for row in rounds.to_dict("records")]
    return "".join(f"{line}\n" for line in lines)


def _ianvs(folder: Path, means: Means) -> str:
    rows = []
    for trial, one, rounds in _replayed(folder, means):
        tokens = trial.bench.manifest.image_tokens
        latency, first = (one.columns[name] for name in ("latency_s", "first_token_s"))
        drafted = int(rounds["drafted"].sum())
        rows.append(
            {
                "method": candidate(one.case),
                **condition(one.case),
                "acceptance_rate": rounds["accepted"].sum() / drafted if drafted else None,
                "end_to_end_latency": float(np.mean(latency)),
                "internal_token_latency": float(np.mean((latency - first) / (tokens - 1))),
                "throughput": float(len(latency) * tokens / np.sum(latency)),
                "TTFT": float(np.mean(first)),
            }
        )
    return json.dumps(plain(rows), indent=2, allow_nan=False) + "\n"


def _cells(folder: Path) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of a table of the run: a row per case."""
    run = load_run(folder)
    quality = next(
        (
            name
            for name in run.summary.columns
            if name.startswith(("align_", "fd_", "cloud_nll"))
            and f"{name}_lo" in run.summary
            and run.summary[name].notna().any()
        ),
        "cloud_nll",
    )
    many = run.summary["condition"].nunique() > 1
    head = ["method", *(["condition"] if many else []), *(f"{text} ({unit})" for text, _, unit in TABLE), quality]
    rows = []
    for _, row in run.summary.iterrows():
        numbers = [significant(float(row[name])) for name in (*(name for _, name, _ in TABLE), quality)]
        rows.append([str(row["label"]), *([str(row["condition"])] if many else []), *numbers])
    return head, rows


def _markdown(folder: Path, means: Means) -> str:
    head, rows = _cells(folder)
    text = len(head) - len(TABLE) - 1
    marks = ["---" if place < text else "---:" for place in range(len(head))]
    lines = [head, marks, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "–": "--",
    "∞": r"$\infty$",
}


def _latex(folder: Path, means: Means) -> str:
    head, rows = _cells(folder)
    text = len(head) - len(TABLE) - 1

    def escaped(cell: str) -> str:
        return "".join(_LATEX.get(one, f"\\{one}" if one in "&%$#_{}" else one) for one in cell)

    lines = [" & ".join(map(escaped, row)) + r" \\" for row in (head, *rows)]
    body = "\n".join([lines[0], r"\midrule", *lines[1:]])
    columns = "l" * text + "r" * (len(head) - text)
    return f"% needs \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


FORMS: dict[str, Callable[[Path, Means], str]] = {
    "accept-trace": _accept_trace,
    "ianvs": _ianvs,
    "markdown": _markdown,
    "latex": _latex,
}
