"""The table for a terminal."""

from typing import Any

from basin.report.table import Table
from basin.report.wording import interval, percent, short, threat

WIDEST = 1000  # columns
LATER = "BASIN_TABLE_LATER"  # in the environment of stages: who runs them all shows the table when they have ended


def show(table: Table, **console: Any) -> None:
    """Print it, as wide as it is: a narrow terminal folds its lines, and loses no digit. `console`: how rich's Console is made."""
    from rich.console import Console
    from rich.measure import Measurement

    to, grid = Console(**console), terminal(table)
    to.width = max(to.width, Measurement.get(to, to.options.update(max_width=WIDEST), grid).maximum)
    to.print(grid, crop=False)


def terminal(table: Table):
    """A rich renderable: model, clean, suites, worst case with its 95% interval, masked, twin; accuracies in per cent."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table as Grid

    title, caption = f"{table.data}, {threat(table)}", f"accuracies in %, worst case with its 95% interval{_note(table)}"
    grid = Grid(title=escape(title), caption=caption, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    grid.add_column("model", no_wrap=True)
    uneven, certified = (["over classes"] if table.uneven else []), (["certified"] if table.certified else [])
    unions = (*map(short, table.threats.values()), "any threat") if table.threats else ()
    for name in ("clean", *table.suites, "worst case", *uneven, "masked", *certified, "twin", *unions):
        grid.add_column(escape(name), justify="right", no_wrap=True, style="bold" if name == "worst case" else None)
    for row in table.ranked:
        worst = f"{percent(row.worst.value)} {interval(row.worst)}"
        grid.add_row(
            escape(row.model),
            percent(row.clean.value),
            *(percent(share.value) for share in row.suites.values()),
            f"[green]{escape(worst)}[/]" if row.worst.value == table.best else escape(worst),
            *([f"{percent(row.balance['balanced_clean'])}, {percent(row.balance['balanced_worst_case'])}"] if table.uneven else []),
            percent(row.masked.value) if row.masked else "",
            *([percent(row.certified) if row.certified is not None else ""] if table.certified else []),
            f"{percent(row.twin.share.value)}{'†' if row.twin.source == 'transfer' else ''}" if row.twin else "",
            *(percent(share.value) for share in row.threats.values()),
            *([f"{percent(row.union.value)} {interval(row.union)}"] if row.union else []),
        )
    return grid


def _note(table: Table) -> str:
    carried = any(row.twin and row.twin.source == "transfer" for row in table.rows)
    uneven = f"; over classes: mean of clean and of worst case; {percent(table.rows[0].balance['largest_class'])} are of one class"
    return ("; † as source of the transfer attack" if carried else "") + (uneven if table.uneven else "")
