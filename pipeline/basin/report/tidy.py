"""The tables that programs read: table.csv, metrics.json, curves.csv, history.csv."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from basin import files
from basin.errors import Mistake
from basin.report.outcomes import Outcome
from basin.report.summary import Curve
from basin.report.table import MADE, MEASURED, UNION, ByModel, Row, Share, Table, column

History = dict[str, list[dict[str, str]]]  # model -> rows of history/<model>.csv with a running `step`


def metrics(table: Table, path: Path) -> None:
    files.write(path, json.dumps(table.metrics(), indent=2) + "\n")


def rows(table: Table, path: Path) -> None:
    threats = [*map(column, table.threats), *UNION] if table.threats else []
    write(path, [*MADE, *table.suites, *MEASURED, *threats], results(table))


def results(table: Table) -> list[dict[str, Any]]:
    """A row a model, in the run's order; accuracies are fractions, and a key is absent where nothing was measured."""
    return [{**_words(row), **row.metrics()} for row in table.rows]


def _words(row: Row) -> dict[str, str]:
    words = {"model": row.model, "backbone": row.backbone, "head": row.head, "training": row.training}
    return words | ({"twin_model": row.twin.model, "twin_source": row.twin.source} if row.twin else {})


def curves(everything: ByModel, path: Path) -> None:
    write(path, ["model", "attack", "eps", "robust", "interval_low", "interval_high", "threat"], points(everything))


def points(everything: ByModel) -> list[dict[str, Any]]:
    """Of each model that has a curve, from the last of its suites that measured one: a row a radius."""
    first = next(iter(next(iter(everything.values())).values())).summary
    curves = {model: curve for model, outcomes in everything.items() if (curve := last_curve(outcomes))}
    return [
        {"model": model, "attack": curve.attack, "eps": eps, "robust": robust, "interval_low": low, "interval_high": high,
         "threat": first.threat.eps}
        for model, curve in curves.items() for eps, robust in sorted(curve.points)
        for low, high in [Share(round(robust * first.n), first.n).interval]
    ]  # fmt: skip


def last_curve(outcomes: Mapping[str, Outcome]) -> Curve | None:
    return next((one.summary.curve for one in list(outcomes.values())[::-1] if one.summary.curve), None)


def read_history(history: Path, models: Sequence[str]) -> History:
    """The training history of each model that left one, with a running `step` from 1.

    Raises: Mistake if a file does not read as `phase,epoch,loss,...` with numbers behind the phase.
    """
    return {model: _epochs(path) for model in models if (path := history / f"{model}.csv").is_file()}


def _epochs(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            if missing := {"phase", "epoch", "loss"} - set(reader.fieldnames or ()):
                raise ValueError(f"no column {', '.join(sorted(missing))}")
            epochs = [{"step": str(step), **row} for step, row in enumerate(reader, 1)]
        for row in epochs:
            [number(cell) for name, cell in row.items() if name != "phase"]
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        stage, name = path.parent.name, path.stem
        raise Mistake(f"{path}: the file is damaged (got {error}). Delete it and run `dvc repro {stage}@{name}`.") from error
    return epochs


def number(cell: str) -> float:
    """A cell of a history; an empty one is nan."""
    return float(cell) if cell else math.nan


def is_finite(cell: str) -> bool:
    return math.isfinite(number(cell))


def history(epochs: History, path: Path) -> None:
    names = dict.fromkeys(name for rows in epochs.values() for row in rows for name in row)
    rest = [name for name in names if name not in ("step", "phase", "epoch", "loss")]
    write(
        path,
        ["model", "phase", "epoch", "step", "loss", *rest],
        ({"model": model, **row} for model, rows in epochs.items() for row in rows),
    )


def write(path: Path, names: Sequence[str], rows: Iterable[dict]) -> None:
    writer = csv.DictWriter(text := io.StringIO(), names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write(path, text.getvalue())
