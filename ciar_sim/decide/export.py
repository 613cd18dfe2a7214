"""Export of runs and scenarios to formats of other tools.

From a run: an accept trace as JSON lines, KubeEdge-Ianvs' five metrics, tables for Markdown and LaTeX. From a run or a scenario: its links
for netem and mahimahi, its messages as a table and as a packet capture.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ciar_sim.decide.bench import Bench, Measured, Prepared, Resources, candidate, condition
from ciar_sim.decide.emulate import mahimahi, netem
from ciar_sim.decide.messages import capture, messages_of
from ciar_sim.decide.regime import of_sweep
from ciar_sim.decide.rounds import call_seconds, rounds_of
from ciar_sim.shipped import scenario_path
from reports.load import load_run
from reports.metrics import CALLS, CLOUD_NLL, COST, LATENCY, P95, SPEEDUP, quality_metrics
from reports.words import significant
from simulator.core.errors import CiarSimError
from simulator.core.yamlfile import did_you_mean
from simulator.experiment.fleet import counts_of
from simulator.experiment.loading import LoadedScenario, load_with_source
from simulator.experiment.scenario import Case
from simulator.experiment.sweep import expand
from simulator.network.transport import TRANSPORTS
from simulator.results.tables import plain

ALL = 2**62  # requests
TABLE = (LATENCY, P95, SPEEDUP, COST, CALLS, CLOUD_NLL)  # columns of the tables, before the pair's qualities


Exported = str | bytes | pd.DataFrame | dict[str, bytes]  # a text, a file, a table, or files by name


@dataclass(frozen=True)
class Choice:
    """The part of a scenario to export.

    Attributes:
        sets: `dotted.path=value`; a swept path gets a single value.
        method: Label of a method; None for all, or for the first if the form takes one only.
        request: Number of a request; None for all, or for the first if the form takes one only.
    """

    sets: Sequence[str] = ()
    method: str | None = None
    request: int | None = None


def export(source: Path, form: str, resources: Resources, choice: Choice | None = None) -> Exported:
    """Export a run folder or a scenario in one of `FORMS`, or a run folder in one of `RUN_FORMS`.

    Args:
        source: The run folder, or the file or name of a scenario.
        form: One of `FORMS` or `RUN_FORMS`.
        resources: The cache of recordings; missing sessions are recorded.
        choice: The part of a scenario; only for `FORMS`.

    Raises:
        CiarSimError: The source is neither, its scenario cannot be replayed, or the choice does not apply to the form.
    """
    choice = choice or Choice()
    if form in FORMS:
        return FORMS[form](source, resources, choice)
    for name, given in (("--set", choice.sets), ("--method", choice.method), ("--request", choice.request)):
        if given not in ((), None):
            raise CiarSimError(f"{name}: goes with {', '.join(FORMS)}, not with a whole run as {form}")
    return RUN_FORMS[form](source, resources)


def _scenario(source: Path, choice: Choice) -> LoadedScenario:
    """Load the scenario of a run folder or of a file, with the values and method of the choice."""
    if source.is_dir():
        load_run(source).require_own_scenario()
        path = source / "scenario.yaml"
    else:
        path = scenario_path(source)
    fixed, sets = of_sweep(path, choice.sets)
    loaded = load_with_source(path, fixed, sets)
    methods = loaded.scenario.methods
    if choice.method is None:
        return loaded
    chosen = [one for one in methods if one.label == choice.method]
    if not chosen:
        labels = [one.label for one in methods]
        raise CiarSimError(
            f"--method {choice.method}: is not a method of the scenario{did_you_mean(choice.method, labels)}"
        )
    return replace(loaded, scenario=loaded.scenario.model_copy(update={"methods": tuple(chosen)}))


def _first_case(source: Path, choice: Choice) -> Case:
    return expand(_scenario(source, choice).scenario)[0]


def _only_links(form: str, choice: Choice) -> None:
    for name, given in (("--method", choice.method), ("--request", choice.request)):
        if given is not None:
            raise CiarSimError(f"{name}: does not go with {form}: links are those of all methods and requests")


def _netem(source: Path, resources: Resources, choice: Choice) -> str:
    _only_links("netem", choice)
    return netem(_first_case(source, choice))


def _mahimahi(source: Path, resources: Resources, choice: Choice) -> dict[str, bytes]:
    _only_links("mahimahi", choice)
    return mahimahi(_first_case(source, choice))


def _simulated(source: Path, resources: Resources, choice: Choice, first: bool) -> Iterator[tuple[Case, pd.DataFrame]]:
    """Yield cases with their messages. first: only the first case, and one request."""
    bench = Bench(_scenario(source, choice), resources)
    prepared = bench.prepare(bench.cases()[:1] if first else bench.cases())
    prepared.measure(timeline_sessions=ALL if choice.request is None and not first else 1 + (choice.request or 0))
    results = prepared.results()
    if not results:
        raise CiarSimError(prepared.failed[0])
    for case, result, _ in results:
        wanted = 0 if first and choice.request is None else choice.request
        table = messages_of([span for span in result.spans if wanted is None or span.request == wanted])
        if wanted is not None and not len(table):
            raise CiarSimError(
                f"--request {wanted}: {case.title} has no message of it; its requests are counted from 0"
            )
        yield case, table


def _messages(source: Path, resources: Resources, choice: Choice) -> pd.DataFrame:
    tables = []
    for case, table in _simulated(source, resources, choice, first=False):
        front = {"method": case.method.label, **case.swept}
        tables.append(table.assign(**front)[[*front, *table.columns]])
    return pd.concat(tables, ignore_index=True)


def _pcap(source: Path, resources: Resources, choice: Choice) -> bytes:
    ((case, table),) = _simulated(source, resources, choice, first=True)
    ends = np.cumsum(counts_of(case.scenario))
    kind = int(np.searchsorted(ends, int(table["device"].iloc[0]), side="right"))
    return capture(table, TRANSPORTS[case.scenario.links[kind].transport])


def _replayed(folder: Path, resources: Resources) -> Iterator[tuple[Prepared, Measured, pd.DataFrame]]:
    """Yield every case of a run with a table of its rounds: request, round, drafted, accepted, milliseconds."""
    load_run(folder).require_own_scenario()
    bench = Bench(load_with_source(folder / "scenario.yaml"), resources)
    prepared = bench.prepare(bench.cases())
    measured = prepared.measure(timeline_sessions=ALL)
    for case, result, _ in prepared.results():
        recordings = prepared.plan.recorded(case)
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
            prepared,
            measured[case.index],
            pd.DataFrame(rows, columns=["request", "round", "drafted", "accepted", "milliseconds"]),
        )


def _accept_trace(folder: Path, resources: Resources) -> str:
    lines = []
    for _, one, rounds in _replayed(folder, resources):
        front = {"method": candidate(one.case), **condition(one.case)}
        lines += [json.dumps({**front, **row}) for row in rounds.to_dict("records")]
    return "".join(f"{line}\n" for line in lines)


def _ianvs(folder: Path, resources: Resources) -> str:
    rows = []
    for prepared, one, rounds in _replayed(folder, resources):
        tokens = prepared.bench.manifest.image_tokens
        rounds = rounds[rounds["request"].isin(one.columns["request"])]  # as `columns`, without the warm-up
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


def _cells(folder: Path) -> tuple[list[str], list[list[str]], int]:
    """Return heading and rows of the table of a run, a row per case, and the number of columns of text before those of numbers."""
    run = load_run(folder)
    shown = [one for one in (*TABLE, *quality_metrics(run.summary)) if run.summary[one.name].notna().any()]
    texts = {"method": "label"} | ({"condition": "condition"} if run.summary["condition"].nunique() > 1 else {})
    rows = []
    for _, row in pd.concat(cases for _, cases in run.conditions()).iterrows():
        numbers = [significant(one.scale * float(row[one.name])) for one in shown]
        rows.append([*(str(row[name]) for name in texts.values()), *numbers])
    return [*texts, *(one.heading for one in shown)], rows, len(texts)


_MARKDOWN = re.compile(r"[\\|<&*`$\[\]~]|(?<!\w)_|_(?!\w)")  # characters with a meaning in Markdown


def markdown_text(cell: str) -> str:
    """Escape a cell's text for Markdown."""
    return _MARKDOWN.sub(r"\\\g<0>", cell)


def _markdown(folder: Path, resources: Resources) -> str:
    head, rows, text = _cells(folder)
    marks = ["---" if place < text else "---:" for place in range(len(head))]
    lines = [head, marks, *(map(markdown_text, row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",  # in TeX's own font encoding these four are other characters
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "×": r"$\times$",
    "–": "--",
    "∞": r"$\infty$",
}


def latex_text(cell: str) -> str:
    """Escape a cell's text for LaTeX. Braces protect a leading [ or *, which would be an argument of the preceding row end."""
    text = "".join(_LATEX.get(one, f"\\{one}" if one in "&%$#_{}" else one) for one in cell)
    return f"{{{text}}}" if text.startswith(("[", "*")) else text


def _latex(folder: Path, resources: Resources) -> str:
    head, rows, text = _cells(folder)
    lines = [" & ".join(map(latex_text, row)) + r" \\" for row in (head, *rows)]
    body = "\n".join([lines[0], r"\midrule", *lines[1:]])
    columns = "l" * text + "r" * (len(head) - text)
    return f"% needs \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


FORMS: dict[str, Callable[[Path, Resources, Choice], Exported]] = {
    "netem": _netem,
    "mahimahi": _mahimahi,
    "messages": _messages,
    "pcap": _pcap,
}
RUN_FORMS: dict[str, Callable[[Path, Resources], str]] = {
    "accept-trace": _accept_trace,
    "ianvs": _ianvs,
    "markdown": _markdown,
    "latex": _latex,
}


def content(found: str | bytes | pd.DataFrame, lines: bool = False) -> bytes:
    """Return the bytes to write. A table becomes CSV, or JSON lines if `lines`."""
    if isinstance(found, bytes):
        return found
    if isinstance(found, str):
        return found.encode()
    if lines:
        return "".join(f"{json.dumps(plain(row))}\n" for row in found.to_dict("records")).encode()
    text: str = found.to_csv(index=False, lineterminator="\n")
    return text.encode()
