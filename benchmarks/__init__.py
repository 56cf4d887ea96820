"""Measurements against what others wrote; each writes a page of docs/results."""

import csv
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from basin import environment
from basin.errors import exit_on_mistake


def write_csv(path: Path, fields: Iterable[str], rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(fields), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def as_command(main: Callable[[], None], level: int = logging.INFO) -> None:
    """A benchmark as a command: one thread, as the pages say, the same bytes each time, and one sentence for bad input."""
    environment.apply()
    logging.basicConfig(level=level, format="%(message)s")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with exit_on_mistake():
        main()
