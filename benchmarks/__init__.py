"""Measurements against what others wrote; each writes a page of docs/results."""

import csv
import logging
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from basin import environment
from basin.errors import exit_on_mistake


def commit() -> str:
    """That of the code which runs, in short; with a + where it was changed since."""
    git = partial(subprocess.run, cwd=Path(__file__).parents[1], capture_output=True, encoding="utf-8")
    changed = git(["git", "diff", "--quiet", "HEAD", "--", "pipeline", "benchmarks", "tests"]).returncode
    return git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip() + "+" * bool(changed)


def write_csv(path: Path, fields: Iterable[str], rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(fields), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def read_csv(path: Path) -> list[dict[str, Any]]:
    """What `write_csv` wrote, numbers as numbers and nothing as None; no rows where there is no file."""
    text = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(text)]


def _number(text: str) -> Any:
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        return text or None


def side_by_side(
    ours: Callable[[], Any], other: Callable[[], Any], rounds: int, clock: Callable[[], float] | None = None
) -> dict[str, Any]:
    """Medians of the seconds of both, alternating, and of their ratio of each round, with its quartiles.

    `clock`: the processor's time of this process, and the wall's where a GPU computes.
    """
    clock = clock or (time.perf_counter if torch.cuda.is_available() else time.process_time)
    for one in (ours, other):  # what is built at the first call is not measured
        one()
    pairs = [(_seconds(ours, clock), _seconds(other, clock)) for _ in range(rounds)]
    low, ratio, high = statistics.quantiles([a / b for a, b in pairs], n=4, method="inclusive")
    seconds, floor = (statistics.median(side) for side in zip(*pairs))
    return {"seconds": seconds, "floor": floor, "ratio": ratio, "low": low, "high": high, "rounds": rounds}


def line(row: Mapping[str, Any]) -> str:
    """A comparison in words."""
    spread, unit = f", quartiles {row['low']:.2f} to {row['high']:.2f}" if "low" in row else "", row.get("unit", "s")
    says = f"{row['says']}; " if "says" in row else ""
    return f"{row['what']}: {says}{row['seconds']:.3g} {unit} beside {row['floor']:.3g} {unit}, ratio {row['ratio']:.3g}{spread}"


def _seconds(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    began = clock()
    call()
    wait()
    return clock() - began


def as_command(main: Callable[[], None], level: int = logging.INFO) -> None:
    """A benchmark as a command: one thread, as the pages say, the same bytes each time, and one sentence for bad input."""
    environment.apply()
    logging.basicConfig(level=level, format="%(message)s")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with exit_on_mistake():
        main()
