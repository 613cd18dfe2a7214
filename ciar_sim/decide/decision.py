"""The result of a decision: sentences, then tables."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from simulator.core.errors import counted

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Decision:
    """The result of a decision.

    Attributes:
        sentences: The answer in words, the most important sentence first.
        table: The figures behind it, a row per alternative.
        more: Further tables by name.
        facts: Settings and numbers of the decision.
        shown: Names of the tables that its text contains.
    """

    sentences: tuple[str, ...]
    table: "pd.DataFrame"
    more: "Mapping[str, pd.DataFrame]" = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    shown: tuple[str, ...] = ("table",)

    @property
    def sentence(self) -> str:
        """The answer in one sentence."""
        return self.sentences[0]

    def to_json(self) -> str:
        """Return sentences, tables and facts as JSON. Unknown values are null."""
        from simulator.results.tables import plain

        tables = {"table": self.table, **self.more}
        rows = {name: table.to_dict("records") for name, table in tables.items()}
        return json.dumps(plain({"sentences": list(self.sentences), **rows, **self.facts}), indent=2, allow_nan=False)

    def __repr__(self) -> str:
        return str(self)  # displayed by notebooks

    def __str__(self) -> str:
        tables = {"table": self.table, **self.more}
        found = [text_table(tables[name]) for name in self.shown if len(tables[name])]
        return "\n\n".join(["\n".join(self.sentences), *found])


def text_table(table: "pd.DataFrame") -> str:
    """Format the table as aligned text: three significant digits, a dash for unknown values, nothing truncated."""
    from rich.cells import cell_len  # letters of some scripts are two cells wide

    cells = [list(table.columns), *([_cell(value) for value in row] for row in table.itertuples(index=False))]
    widths = [max(cell_len(row[place]) for row in cells) for place in range(len(table.columns))]
    numeric = [table[name].dtype.kind in "iuf" for name in table]
    lines = [
        "  ".join(
            " " * (width - cell_len(cell)) + cell if right else cell + " " * (width - cell_len(cell))
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    from reports.words import significant

    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value + 0.0:,.0f}" if value.is_integer() and abs(value) < 1e9 else significant(value)
    return "–" if value is None else str(value)


def span(low: float, high: float) -> str:
    """Format an interval as ` (4.1 to 4.6)`; empty if it is NaN."""
    from reports.words import significant

    if math.isnan(low) or math.isnan(high):
        return ""
    return f" ({significant(low)} to {significant(high)})"


MOST_FAILED = 3  # reasons that are quoted


def failed_cases(messages: Sequence[str]) -> list[str]:
    """Return a sentence about the cases that could not be simulated, with each reason once; empty if there are none.

    messages: "CASE: reason", one per case.
    """
    from reports.words import failures

    if not messages:
        return []
    reasons = failures(messages)
    more = len(reasons) - MOST_FAILED
    told = "; ".join(reasons[:MOST_FAILED]) + (f"; and {counted(more, 'other reason')}" if more > 0 else "")
    many = f"{len(messages)} cases failed and are" if len(messages) > 1 else "1 case failed and is"
    return [f"{many} in no table: {told}."]
