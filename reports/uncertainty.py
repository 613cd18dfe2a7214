"""Plots (PNG and SVG) and Markdown summary of `ciar-sim evaluate uncertainty`."""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from reports.figure import INK, MUTED, PAGE, finish, new_figure, render, styled

EVENT_TITLES = {
    "differs": "cloud's top token differs",
    "tv": "total variation above its median",
    "nll": "nats of the token above their median",
}
# Measures drawn, with colour (Okabe and Ito's hues) and dash. The Inter-Head's scores share a colour and differ in dash.
LOOKS: dict[str, tuple[str, str]] = {
    "u": ("#d55e00", "-"),
    "omega": ("#d55e00", "--"),
    "lower-top": ("#d55e00", ":"),
    "entropy": ("#0072b2", "-"),
    "max-prob": ("#009e73", "-"),
    "margin": ("#56b4e9", "-"),
    "softmax-corr-window": ("#cc79a7", "-"),
    "discrete-300": ("#e69f00", "-"),
    "random": ("#8a9099", "-"),
    "ceiling": (INK, "-."),
}


def draw(
    summary: pd.DataFrame, risk: pd.DataFrame, calibration: pd.DataFrame, facts: dict[str, Any]
) -> dict[str, bytes]:
    """Draw both plots. Return file name -> bytes; equal tables give equal bytes."""
    files: dict[str, bytes] = {}
    with styled():
        figures = {
            "risk-coverage": risk_coverage(summary, risk, facts),
            "calibration": calibration_plot(summary, calibration, facts),
        }
        for name, figure in figures.items():
            files |= {f"{name}.png": render(figure, "png"), f"{name}.svg": render(figure, "svg")}
    return files


def risk_coverage(summary: pd.DataFrame, risk: pd.DataFrame, facts: dict[str, Any]) -> Figure:
    """Draw risk-coverage curves: a panel per event, with the share of events among the tokens kept on the device.

    The legend is sorted by the area under the curve.
    """
    figure = new_figure(12.5, 6.0, PAGE)
    for axes, event in zip(figure.subplots(1, len(EVENT_TITLES)), EVENT_TITLES, strict=True):
        rows = summary[(summary["event"] == event) & summary["measure"].isin(list(LOOKS))].sort_values(
            "aurc", kind="stable"
        )
        for measure, label, area in rows[["measure", "label", "aurc"]].itertuples(index=False):
            curve = risk[(risk["event"] == event) & (risk["measure"] == measure)]
            colour, dash = LOOKS[measure]
            axes.plot(
                100 * curve["coverage"],
                100 * curve["risk"],
                dash,
                color=colour,
                linewidth=1.6,
                label=f"{area:.3f}  {label}",
            )
        rate = (
            float(summary.loc[(summary["event"] == event) & (summary["measure"] == "random"), "event_pct"].iloc[0])
            / 100
        )
        coverages = [c / 200 for c in range(1, 201)]
        best = [100 * max(0.0, (c - (1 - rate)) / c) for c in coverages]
        axes.plot([100 * c for c in coverages], best, color="#b8bec7", linewidth=1.2, zorder=1)
        middle = 1 - rate / 2
        at = (100 * middle, 100 * (middle - (1 - rate)) / middle)
        axes.annotate("perfect", at, xytext=(4, -10), textcoords="offset points", color=MUTED, fontsize=8)
        axes.set(title=EVENT_TITLES[event], xlabel="tokens kept on the device (%)", xlim=(0, 100), ylim=(0, None))
        axes.set_ylabel("of these, with the event (%)")
        title = "area under the curve (lower is better)"
        axes.legend(title=title, loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8, title_fontsize=8)
    text = (
        "Tokens are kept in order of rising uncertainty; a useful score keeps the curve low while most tokens are kept."
    )
    finish(figure, PAGE, (), (text,), described(facts))
    return figure


def calibration_plot(summary: pd.DataFrame, calibration: pd.DataFrame, facts: dict[str, Any]) -> Figure:
    """Draw a panel per measure: the share of tokens on which the cloud differs by decile of the score, with 95 % intervals."""
    rows = {row.measure: row for row in summary[summary["event"] == "differs"].itertuples(index=False)}
    names = [name for name in LOOKS if name in rows]
    columns = 5
    figure = new_figure(12.5, 2.6 * math.ceil(len(names) / columns) + 0.3, PAGE)
    grid = figure.subplots(math.ceil(len(names) / columns), columns, sharex=True, sharey=True, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(names):
            axes.set_visible(False)
            continue
        _calibration_panel(axes, names[place], rows[names[place]], calibration)
        if place % columns == 0:
            axes.set_ylabel("cloud differs (% of tokens)")
        if place + columns >= len(names):
            axes.set_xlabel("score, by rank (%)")
            axes.xaxis.set_tick_params(labelbottom=True)
    text = "Each point is about a tenth of the tokens, lowest uncertainty left; bars are 95 % intervals over prompts; grey: all tokens."
    finish(figure, PAGE, (), (text,), described(facts))
    return figure


def _calibration_panel(axes: Axes, name: str, row: Any, calibration: pd.DataFrame) -> None:
    """Draw the panel of one measure. row: its row of the summary."""
    part = calibration[(calibration["event"] == "differs") & (calibration["measure"] == name)]
    share = part["tokens"] / part["tokens"].sum()
    middle = 100 * (share.cumsum() - share / 2)
    colour, _ = LOOKS[name]
    bars = [(100 * (part["share"] - part["low"])).clip(lower=0), (100 * (part["high"] - part["share"])).clip(lower=0)]
    axes.axhline(row.event_pct, color="#b8bec7", linewidth=1.2, zorder=1)
    axes.errorbar(
        middle, 100 * part["share"], yerr=bars, color=colour, marker="o", markersize=3.5, linewidth=1.4, elinewidth=1.0
    )
    axes.set_title(f"{row.label}\nAUROC {row.auroc:.3f}", fontsize=9)
    axes.set(xlim=(0, 100), ylim=(0, 100))
    axes.xaxis.set_major_formatter(PercentFormatter(100, 0, ""))


def described(facts: dict[str, Any]) -> str:
    """Describe the measurement in one line."""
    where = {"generated": "sequences decoded by the cloud", "scenes": "tokens of real scenes"}[facts["on"]]
    return (
        f"pair {facts['pair']}, {facts['prompts']} prompts (seed {facts['seed']}), {facts['tokens']} tokens, {where}, "
        f"guidance {facts['guidance']:g}; the cloud's top token differs at {facts['differs_pct']:.1f} %"
    )


def markdown(summary: pd.DataFrame, regions: pd.DataFrame, timing: pd.DataFrame | None, facts: dict[str, Any]) -> str:
    """Return the Markdown summary: AUROC of every measure for every event, regions, and times if measured."""
    lines = [
        "# Uncertainty scores",
        "",
        f"{described(facts)[0].upper()}{described(facts)[1:]}.",
        f"Weights {facts['weights'][:12]}. Intervals: 95 %, {facts['bootstrap_draws']} draws of whole prompts.",
        *_auroc(summary),
        *_regions(regions, facts),
        *(_in_pixels(regions) if "small_change_pct" in regions else ()),
        *(_times(timing, summary) if timing is not None else ()),
    ]
    return "\n".join(lines) + "\n"


def _auroc(summary: pd.DataFrame) -> list[str]:
    lines = [
        "",
        "## AUROC",
        "",
        "| measure | differs | high total variation | high nats | area, differs | tokens |",
        "|---|---|---|---|---|---|",
    ]
    for measure in summary["measure"].unique():
        rows = summary[summary["measure"] == measure].set_index("event")
        cells = [
            f"{r.auroc:.3f} ({r.auroc_low:.3f} to {r.auroc_high:.3f})"
            for r in (rows.loc[event] for event in EVENT_TITLES)
        ]
        first = rows.iloc[0]
        lines.append(
            f"| {first['label']} | {' | '.join(cells)} | {rows.loc['differs', 'aurc']:.3f} | {first['tokens']} |"
        )
    return lines


def _regions(regions: pd.DataFrame, facts: dict[str, Any]) -> list[str]:
    means = {"u": "U~", "omega": "Omega", "entropy": "entropy (share of log V)"}
    means = {name: label for name, label in means.items() if name in regions}
    where = "real scenes" if facts["subject"] == "scenes" else "the images"
    lines = [
        "",
        f"## Regions of {where}" if len(regions) > 1 else "## All tokens",
        "",
        f"| region | tokens | cloud's entropy, guided | unguided | cloud differs | {' | '.join(means.values())} |",
        "|---" * (5 + len(means)) + "|",
    ]
    for _, row in regions.iterrows():
        nats = f"{row['cloud_entropy_nats']:.3f} nats | {row['cloud_entropy_unguided_nats']:.3f} nats"
        scores = " | ".join(f"{row[name]:.3f}" for name in means)
        lines.append(f"| {row['region']} | {row['share_pct']:.1f} % | {nats} | {row['differs_pct']:.1f} % | {scores} |")
    return lines


def _in_pixels(regions: pd.DataFrame) -> list[str]:
    return [
        "",
        "## In pixels",
        "",
        "Share of tokens that change the 8 x 8 pixels around them by less than 8/255 (RMS), of those that were compared.",
        "",
        "| region | the device's choice for the cloud's | one draw of the cloud for another |",
        "|---|---|---|",
        *(
            f"| {row.region} | {row.small_change_pct:.1f} % | {row.small_change_draws_pct:.1f} % |"
            for row in regions.dropna(subset="small_change_pct").itertuples(index=False)
        ),
    ]


def _times(timing: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    sizes = list(timing["vocab_size"].unique())
    lines = [
        "",
        "## Milliseconds per token",
        "",
        f"Medians on this machine, threads: {timing['threads'].iloc[0]}, centre logits given.",
        "",
        "| measure | " + " | ".join(f"V = {size}" for size in sizes) + " |",
        "|---" * (1 + len(sizes)) + "|",
    ]
    labels = dict(zip(summary["measure"], summary["label"], strict=True))
    labels["radius"] = "radius: the second matrix product"
    for measure in timing["measure"].unique():
        found = timing[timing["measure"] == measure].set_index("vocab_size")["ms_per_token"]
        cells = " | ".join(f"{found[size]:.4f}" for size in sizes)
        lines.append(f"| {labels.get(measure, measure)} | {cells} |")
    return lines
