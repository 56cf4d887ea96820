"""What a verdict costs: the ready-made suites, with and without shortcuts, on the models of finished runs.

    python -m benchmarks.verdicts RUN/models/STAGE/NAME ... [--images 300] [--seed 0] [--suites quick,standard] [--thorough]
        [--folder docs/results]

A model lies in a run's folder, whose params.yaml says the threat and whose data/prepared holds the images. Every suite and AutoAttack's
`standard` by its authors judge the same images; seconds are of the processor, one thread, in one process one after the other. Every
point is judged by the reported float32 function. A row is written as soon as it is there. Writes docs/results/verdicts.md and .csv.
"""

import argparse
import logging
import platform
import textwrap
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from basin.config import params
from basin.config.suite import READY, Suite, ready
from basin.data.splits import load_split
from basin.errors import Mistake
from basin.evaluation.interval import wilson
from basin.evaluation.robustness import QUICK, evaluate
from basin.models import artifact
from basin.threat.ball import ThreatModel
from benchmarks import as_command, write_csv

log = logging.getLogger(__name__)
REFERENCE = "autoattack"
FIELDS = (
    "model", "data", "norm", "eps", "n", "suite", "thorough", "robust", "low", "high", "seconds", "passes", "times", "other",
    "search", "flags",
)  # fmt: skip


def rows(place: Path, images: int, seed: int, suites: list[str], both: bool) -> Iterator[dict[str, Any]]:
    """A row a suite; `times` says how much less time it took than AutoAttack, `other` of how many images the two say otherwise."""
    run = place.parents[2]
    asked = params.load(run / "params.yaml")
    test = load_split(run / "data/prepared", "test")
    if len(test) < images:
        raise Mistake(f"--images: {run} has only {len(test)} test images (got {images}). Ask for fewer.")
    x, y = test.floats(slice(0, images)), test.labels[:images]
    model, twin, ball = artifact.load(place).requires_grad_(False).eval(), artifact.load_twin(place), ThreatModel.of(asked.threat)
    about = {"model": f"{place.parent.name}/{place.name}", "data": asked.source.kind, "norm": ball.norm, "eps": ball.eps, "n": images}
    reference: dict[str, Any] = {}
    for name, thorough in [(REFERENCE, False), *((suite, thorough) for suite in suites for thorough in (False, True)[: 1 + both])]:
        began = time.process_time()
        found = evaluate(model, twin, x, y, ball, ready(name, Suite(thorough=thorough)), (seed, name))
        seconds = time.process_time() - began
        reference = reference or {"seconds": seconds, "share": found.outcomes.share}
        low, high = wilson(float(found.outcomes.share.sum()), images)
        row = about | {"suite": name, "thorough": int(thorough), "robust": found.worst_case, "low": low, "high": high}
        row |= {"seconds": round(seconds, 1), "passes": found.outcomes.passes, "times": round(reference["seconds"] / seconds, 1)}
        row |= {"other": int((found.outcomes.share != reference["share"]).sum()), "search": int(QUICK in found.facts)}
        yield row | {"flags": ", ".join(found.flags)}


def page(table: list[dict[str, Any]], command: str) -> str:
    about = (
        f"Made by `{command}`, torch {version('torch')}, pyautoattack {version('pyautoattack')}, Python {platform.python_version()}, "
        f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, one thread. Robust accuracy in %, 95% Wilson interval; "
        "seconds of the processor, each suite once, one after the other in one process; *times less* is AutoAttack's time over its; "
        "*otherwise* counts the images of which AutoAttack says otherwise, in either direction; bf16: whether gradients were followed in "
        "bfloat16 ([evaluation](../evaluation.md)). The models are those of other runs than the ones on which the suites were chosen."
    )
    lines = [
        "# What a verdict costs",
        "",
        textwrap.fill(about, 140),
        "",
        "| model | suite | robust | seconds | times less | passes an image | otherwise | bf16 | flags |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_line(row) for row in table]) + "\n\nThe figures as a file: [verdicts.csv](verdicts.csv).\n"


def _line(row: dict[str, Any]) -> str:
    suite = row["suite"] + ", thorough" * row["thorough"]
    robust = f"{100 * row['robust']:.2f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    model = f"{row['model']}, {row['data']}, {row['norm']} {row['eps']:g}, n = {row['n']}"
    cells = (model, suite, robust, row["seconds"], row["times"], round(row["passes"] / row["n"]), row["other"])
    return f"| {' | '.join(map(str, cells))} | {'yes' if row['search'] else ''} | {row['flags']} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdicts", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, help="model folders of runs: RUN/models/STAGE/NAME")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--suites", default="quick,standard", help=f"of {', '.join(READY)}")
    parser.add_argument("--thorough", action="store_true", help="each suite without shortcuts too")
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    words = f"--images {asked.images} --seed {asked.seed} --suites {asked.suites}{' --thorough' * asked.thorough}"
    command = f"python -m benchmarks.verdicts MODEL ... {words}"
    table: list[dict[str, Any]] = []
    for place in asked.models:
        for row in rows(place.resolve(), asked.images, asked.seed, asked.suites.split(","), asked.thorough):
            table.append(row)
            log.info("%(model)s %(suite)s: %(robust).4f in %(seconds)s s, %(passes)s passes, %(times)s times less", row)
            write_csv(asked.folder / "verdicts.csv", FIELDS, table)
            (asked.folder / "verdicts.md").write_text(page(table, command), encoding="utf-8")


if __name__ == "__main__":
    as_command(main)
