"""Everything that the report writes, in one call."""

from collections.abc import Sequence
from pathlib import Path

from basin import files
from basin.errors import Mistake
from basin.report import outcomes as reading
from basin.report import plots, tidy
from basin.report.table import Table, tabulate


def read(outcomes: Path, models: Sequence[str], suites: Sequence[str]) -> Table:
    """The table of a run, from its outcomes."""
    return tabulate(_all(outcomes, models, suites), suites)


def _all(outcomes: Path, models: Sequence[str], suites: Sequence[str]) -> dict[str, dict[str, reading.Outcome]]:
    return reading.read_all(outcomes, models, suites, outcomes.parent / reading.EXCHANGED)


def write(outcomes: Path, history: Path, models: Sequence[str], suites: Sequence[str], out: Path) -> Table:
    """Read outcomes/ and history/, write index.html, table.csv, metrics.json, curves.csv, history.csv and plots/ into `out`.

    The same inputs give the same bytes.

    Args:
        models: names `<stage>/<name>`, in the order of the run.
        suites: names of the suites, weakest first.
    Raises: Mistake naming what is missing, damaged or not comparable.
    """
    from basin.report.page import page

    if not models or not suites:
        raise Mistake(
            f"params.yaml: attack: nothing to report (got {len(models)} models, {len(suites)} suites). Name at least one of each."
        )
    everything = _all(outcomes, models, suites)
    table, epochs = tabulate(everything, suites), tidy.read_history(history, models)
    tidy.rows(table, out / "table.csv")
    tidy.metrics(table, out / "metrics.json")
    tidy.curves({model: reading.under_run(outcomes) for model, outcomes in everything.items()}, out / "curves.csv")
    tidy.history(epochs, out / "history.csv")
    plots.write(out / "plots")
    files.write(out / "index.html", page(table, everything, epochs, "../"))
    return table
