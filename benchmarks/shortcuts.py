"""What the shortcuts of the ready-made suites miss: every model of tests/zoo under a suite with them and without, image for image.

    python -m benchmarks.shortcuts [--suite standard] [--folder docs/results]

The models have the faults that mislead an evaluation, and their truth is known. `adaptive` is shortened as in the zoo's tests. Writes
docs/results/shortcuts.md and .csv as it goes; what the latter holds of other suites stays.
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
from benchmarks import as_command, commit, read_csv, write_csv
from benchmarks.zoo import SUITE, honest, hostile, judged

log = logging.getLogger(__name__)
FIELDS = ("suite", "model", "n", "truth", "shortcuts", "thorough", "higher", "lower", "passes", "thorough_passes", "code")


def rows(suite: str) -> Iterator[dict[str, Any]]:
    """A row a model that can be judged; `higher` and `lower` count images of which the shortcuts say so."""
    code = f"commit {commit()}"
    for animal in (*honest.ANIMALS, *hostile.ANIMALS):
        try:
            quick, whole = (judged(animal, _suite(suite, thorough)) for thorough in (False, True))
        except Mistake as refusal:
            log.info("%s: refused (%s)", animal.name, str(refusal)[:80])
            continue
        known = animal.known()
        row: dict[str, Any] = {"suite": suite, "model": animal.name, "n": len(quick.outcomes)}
        row |= {"truth": None if isinstance(known, str) else known[1]}
        row |= {"shortcuts": quick.worst_case, "thorough": whole.worst_case}
        row |= {"higher": int((quick.outcomes.share > whole.outcomes.share).sum()), "passes": quick.outcomes.passes}
        row |= {"lower": int((quick.outcomes.share < whole.outcomes.share).sum()), "thorough_passes": whole.outcomes.passes, "code": code}
        log.info("%(model)s: %(shortcuts).3f, thorough %(thorough).3f of %(n)d; %(higher)d images higher, %(lower)d lower", row)
        yield row


def _suite(name: str, thorough: bool) -> Suite:
    return SUITE.model_copy(update={"thorough": thorough}) if name == "adaptive" else ready(name, Suite(thorough=thorough))


def page(table: list[dict[str, Any]]) -> str:
    suites = dict.fromkeys(row["suite"] for row in table)
    about = (
        f"Made by `python -m benchmarks.shortcuts --suite NAME`, torch {version('torch')}: the models of tests/zoo with a suite's "
        "shortcuts ([decision 0016](../decisions/0016-shortcuts.md)) and `thorough`; `adaptive` has fewer steps and queries. "
        + " ".join(_total(suite, [row for row in table if row["suite"] == suite]) for suite in suites)
    )
    lines = ["# What the shortcuts miss", "", textwrap.fill(about, 140), ""]
    lines += ["| suite | model | truth | with shortcuts | thorough | higher | lower |", "|---|---|---|---|---|---|---|"]
    lines += [_line(row) for row in table]
    return "\n".join(lines) + "\n\nAccuracies in % under attack. The figures as a file: [shortcuts.csv](shortcuts.csv).\n"


def _total(suite: str, table: list[dict[str, Any]]) -> str:
    n, higher, lower = (sum(row[key] for row in table) for key in ("n", "higher", "lower"))
    passes = [sum(row[key] for row in table) / n for key in ("passes", "thorough_passes")]
    fewer = sum(row["passes"] < row["thorough_passes"] for row in table)
    return (
        f"`{suite}` ({table[0]['code']}): of {n} images of {len(table)} models both agree on {100 * (1 - (higher + lower) / n):.2f}%; "
        f"{higher} are said to hold with shortcuts alone, {lower} without them alone; {passes[0]:.0f} and {passes[1]:.0f} passes an image, "
        f"fewer on {fewer} models."
    )


def _line(row: dict[str, Any]) -> str:
    shares = [f"{100 * row[key]:.1f}" if row[key] is not None else "" for key in ("truth", "shortcuts", "thorough")]
    return f"| {' | '.join([row['suite'], row['model'], *shares, str(row['higher']), str(row['lower'])])} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shortcuts", description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default="standard", choices=["quick", "standard", "adaptive"])
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    table = [row for row in read_csv(asked.folder / "shortcuts.csv") if row["suite"] != asked.suite]
    for row in rows(asked.suite):
        table.append(row)
        write_csv(asked.folder / "shortcuts.csv", FIELDS, table)
        (asked.folder / "shortcuts.md").write_text(page(table), encoding="utf-8")


if __name__ == "__main__":
    as_command(main)
