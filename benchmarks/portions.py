"""How A3's rounds are best shared out: `standard` with other shares of the images that hold, on the models on which the suites were chosen.

    basin use suites && basin repro, and then
    python -m benchmarks.portions [RUN] [--images 300] [--seeds 0 1 2] [--folder docs/results]

Each way on each model and ball (benchmarks/choice.py), with every seed of what the attacks draw. Writes docs/results/portions.md and .csv.
"""

import argparse
import logging
import textwrap
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from basin.config.suite import READY, Suite
from basin.evaluation.robustness import evaluate
from benchmarks import as_command, commit, write_csv
from benchmarks.choice import Standing, standing

log = logging.getLogger(__name__)
WAYS: dict[str, dict[str, tuple[int, float]]] = {  # attack -> its rounds, and the share of the images that it is tried on at once
    "10 rounds on a tenth": {"a3": (10, 0.1)},
    "10 rounds on a quarter": {"a3": (10, 0.25)},
    "2 on a half, 10 on a tenth": {"a3_short": (2, 0.5), "a3": (10, 0.1)},
    "4 on a third, 16 on a tenth": {"a3_short": (4, 0.34), "a3": (16, 0.1)},
}
WHOLE = "every attack on all that hold"
FIELDS = ("model", "way", "n", "left", "passes", "seconds")


def suite(way: str) -> Suite:
    """`standard` with A3 in this way, in its place among the others."""
    table = READY["standard"]
    if way == WHOLE:
        return Suite.model_validate(table | {"thorough": True})
    attacks = {name: table["attacks"][name] for name in ("margin", "pma_short", "apgd_nearest")}
    attacks |= {name: {"kind": "a3", "rounds": rounds} for name, (rounds, _) in WAYS[way].items()}
    attacks |= {name: attack for name, attack in table["attacks"].items() if attack["kind"] != "a3"}
    probe = {name: share for name, share in table["probe"].items() if name in attacks}
    return Suite.model_validate(table | {"attacks": attacks, "probe": probe | {name: share for name, (_, share) in WAYS[way].items()}})


def rows(models: Standing, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A row a model and a way: how many images are left with each seed, and what it took, a mean over them."""
    for evaluation, outcomes in models:
        for way in (*WAYS, WHOLE):
            began, asked = time.process_time(), suite(way)
            given = evaluation.classifier, None, outcomes.images, outcomes.labels, evaluation.threat, asked
            found = [evaluate(*given, (seed, "standard")).outcomes for seed in seeds]  # type: ignore[arg-type]
            seconds = (time.process_time() - began) / len(seeds)
            row = {"model": evaluation.seed[1], "way": way, "n": len(outcomes), "left": " ".join(str(len(one.alive)) for one in found)}
            yield row | {"passes": round(sum(one.passes for one in found) / len(seeds) / len(outcomes), 1), "seconds": round(seconds, 2)}


def page(table: Sequence[dict[str, Any]], command: str) -> str:
    models, n = list(dict.fromkeys(row["model"] for row in table)), table[0]["n"]
    about = (
        f"Made by `{command}` after `basin use suites` and `basin repro`, torch {version('torch')}, commit {commit()}, one thread, "
        f"{n} images each of {len(models)} pairs of a model and a ball: {'; '.join(models)}. "
        "The suite `standard` with A3's rounds on other shares of the images that hold, closest to falling first. "
        "Means over models and draws; *left*: % of the images that hold; *passes* of an image."
    )
    lines = ["# How A3's rounds are shared out", "", textwrap.fill(about, 140), "", "| A3 | left | passes | seconds |", "|---|---|---|---|"]
    return "\n".join([*lines, *(_line(way, table) for way in (*WAYS, WHOLE))]) + "\n\nModel by model: [portions.csv](portions.csv).\n"


def _line(way: str, table: Sequence[dict[str, Any]]) -> str:
    of = [row for row in table if row["way"] == way]
    left = [int(held) / row["n"] for row in of for held in str(row["left"]).split()]
    means = [sum(values) / max(len(values), 1) for values in (left, [row["passes"] for row in of], [row["seconds"] for row in of])]
    return f"| {way} | {100 * means[0]:.2f} | {means[1]:.0f} | {means[2]:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.portions", description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, default=Path(), help="the folder of the run of params/suites.yaml")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of what the attacks draw")
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    table: list[dict[str, Any]] = []
    for row in rows(standing(asked.run.resolve(), asked.images), asked.seeds):
        log.info("%(model)s, %(way)s: %(left)s left, %(passes)s passes, %(seconds)s s", row)
        table.append(row)
        write_csv(asked.folder / "portions.csv", FIELDS, table)
        command = f"python -m benchmarks.portions --images {asked.images} --seeds {' '.join(map(str, asked.seeds))}"
        (asked.folder / "portions.md").write_text(page(table, command), encoding="utf-8")


if __name__ == "__main__":
    as_command(main)
