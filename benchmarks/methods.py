"""The table of a finished run: `python -m benchmarks.methods NAME` puts it in the place of the first table of docs/results/NAME.md.

Beside what report/table.csv holds: the paired difference to the undefended twin, and the flags.
docs/results/NAME.csv has the same columns, accuracies as fractions.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from basin.config import params
from basin.config.params import Config
from basin.errors import Mistake
from basin.registry import candidates, snapshot
from basin.registry.promotion import Unregistered
from basin.report.pairs import Difference, paired
from basin.report.table import Share
from benchmarks import as_command, write_csv

TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)


def rows(asked: Config) -> Iterator[dict[str, Any]]:
    """A row a model, highest worst case first; `Share`s, and text."""
    run = candidates.read(asked, snapshot.digests(asked))
    held = {one.model: Unregistered(one).held for one in run}
    for one in sorted(run, key=lambda one: -one.row.worst.k):
        row = one.row
        cells = {"model": one.model, "clean": row.clean, "masked": row.masked} | row.suites
        cells |= {"worst case": row.worst, "twin": row.twin.share if row.twin else None}
        cells["minus twin"] = paired(held[one.model], held[row.twin.model]) if row.twin and row.twin.model in held else None
        yield cells | {"flags": ", ".join(one.flags), "unresolved": ", ".join(one.unresolved), "n": str(row.worst.n)}


def page(table: list[dict[str, Any]]) -> str:
    """Accuracies in %, with 95% intervals."""
    lines = ["| " + " | ".join(table[0]) + " |", "|" + "---|" * len(table[0])]
    return "\n".join(lines + ["| " + " | ".join(map(_shown, row.values())) + " |" for row in table]) + "\n"


def _shown(cell: Any) -> str:
    if not isinstance(cell, Share | Difference):
        return cell or ""
    low, high = cell.interval
    return f"{100 * cell.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """The same for CSV, accuracies as fractions."""
    return {name: cell.value if isinstance(cell, Share | Difference) else cell for name, cell in row.items()}


def put(table: str, place: Path) -> None:
    """In the place of a page's first table. Raises Mistake where there is none."""
    if not place.exists() or not TABLE.search(text := place.read_text(encoding="utf-8")):
        raise Mistake(f"{place}: no page with a table (got the name {place.stem!r}). Write one first: what ran, and a table's heading.")
    place.write_text(TABLE.sub(lambda _: table, text, count=1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the page in the folder")
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    table, place = list(rows(params.load())), asked.folder / f"{asked.name}.md"
    put(page(table), place)
    write_csv(place.with_suffix(".csv"), table[0], [flat(row) for row in table])


if __name__ == "__main__":
    as_command(main)
