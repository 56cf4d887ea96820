"""What the shortcuts of the ready-made suites miss: every model of tests/zoo under `standard` with them and without, image for image.

    python -m benchmarks.shortcuts [--suite standard] [--folder docs/results]

The models have the faults that mislead an evaluation, and their truth is known. Writes docs/results/shortcuts.md and .csv as it goes.
"""

import argparse
import logging
import textwrap
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from basin.config.suite import Suite, ready
from basin.errors import Mistake
from benchmarks import as_command, write_csv
from benchmarks.zoo import honest, hostile, judged

log = logging.getLogger(__name__)
FIELDS = ("model", "n", "truth", "shortcuts", "thorough", "higher", "lower", "passes", "thorough_passes")


def rows(suite: str) -> Iterator[dict[str, Any]]:
    """A row a model that can be judged; `higher` and `lower` count images of which the shortcuts say so."""
    for animal in (*honest.ANIMALS, *hostile.ANIMALS):
        try:
            quick, whole = (judged(animal, ready(suite, Suite(thorough=thorough))) for thorough in (False, True))
        except Mistake as refusal:
            log.info("%s: refused (%s)", animal.name, str(refusal)[:80])
            continue
        known = animal.known()
        row: dict[str, Any] = {"model": animal.name, "n": len(quick.outcomes), "truth": "" if isinstance(known, str) else known[1]}
        row |= {"shortcuts": quick.worst_case, "thorough": whole.worst_case}
        row |= {"higher": int((quick.outcomes.share > whole.outcomes.share).sum()), "passes": quick.outcomes.passes}
        row |= {"lower": int((quick.outcomes.share < whole.outcomes.share).sum()), "thorough_passes": whole.outcomes.passes}
        log.info("%(model)s: %(shortcuts).3f, thorough %(thorough).3f of %(n)d; %(higher)d images higher, %(lower)d lower", row)
        yield row


def page(table: list[dict[str, Any]], suite: str) -> str:
    n, higher, lower = (sum(row[key] for row in table) for key in ("n", "higher", "lower"))
    passes = [sum(row[key] for row in table) / n for key in ("passes", "thorough_passes")]
    about = (
        f"Made by `python -m benchmarks.shortcuts --suite {suite}`, torch {version('torch')}: the models of tests/zoo under `{suite}` with "
        f"its shortcuts ([decision 0016](../decisions/0016-shortcuts.md)) and `thorough`. Of {n} images of {len(table)} models both "
        f"agree on {100 * (1 - (higher + lower) / n):.2f}%; {higher} are said to hold with shortcuts alone, {lower} without them alone. "
        f"Passes an image: {passes[0]:.0f} and {passes[1]:.0f}."
    )
    lines = ["# What the shortcuts miss", "", textwrap.fill(about, 140), ""]
    lines += ["| model | truth | with shortcuts | thorough | higher | lower |", "|---|---|---|---|---|---|"]
    lines += [_line(row) for row in table]
    return "\n".join(lines) + "\n\nAccuracies in % under attack. The figures as a file: [shortcuts.csv](shortcuts.csv).\n"


def _line(row: dict[str, Any]) -> str:
    shares = [f"{100 * row[key]:.1f}" if row[key] != "" else "" for key in ("truth", "shortcuts", "thorough")]
    return f"| {' | '.join([row['model'], *shares, str(row['higher']), str(row['lower'])])} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shortcuts", description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default="standard", choices=["quick", "standard"])
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    table: list[dict[str, Any]] = []
    for row in rows(asked.suite):
        table.append(row)
        write_csv(asked.folder / "shortcuts.csv", FIELDS, table)
        (asked.folder / "shortcuts.md").write_text(page(table, asked.suite), encoding="utf-8")


if __name__ == "__main__":
    as_command(main)
