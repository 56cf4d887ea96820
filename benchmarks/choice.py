"""Which attack comes when: the order of the ready-made suites, chosen by images broken per pass over a training set of models.

    basin use suites && basin repro, and then
    python -m benchmarks.choice [RUN] [--images 300] [--folder docs/results]

Greedy: every candidate is tried on each model from where it stands; the one that breaks most per pass (shares of the images, and passes an
image, both summed over the models, so that each weighs the same) comes next, and all go on from what it left, until none breaks anything.
After the first, a candidate is probed: it is given a share of the images that hold, closest to falling first, and the next share only where
the last one lost an image. Models are judged as `basin.evaluate` does; one that draws is left out, where a lucky draw would count.
Writes docs/results/choice.md and .csv; docs/results/verdicts.md says what the suites do on models that are not among these.
"""

import argparse
import copy
import logging
import math
import textwrap
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basin.config import params
from basin.config.kinds import choose
from basin.data.splits import load_split
from basin.errors import Mistake
from basin.evaluation.cascade import Evaluation
from basin.evaluation.outcomes import Outcomes
from basin.evaluation.search import search
from basin.evaluation.ways import Attempt
from basin.models import artifact
from basin.models.ode import flows
from basin.randomness import random_layers
from basin.threat.ball import ThreatModel
from benchmarks import as_command, commit, write_csv

log = logging.getLogger(__name__)
FIELDS = ("round", "attack", "broken", "passes", "rate", "chosen")
BALLS = {"linf": 1.0, "l2": 5.0}  # radii in those of the run, whose threat is L-infinity
PROBE = 0.1  # of the images that hold
SEARCHED = 16  # images on which the quicker function is looked at
ROUNDS = 8
ATTACKS: dict[str, dict[str, Any]] = {
    "20 steps on the cross-entropy": {"kind": "pgd", "steps": 20, "step": 0.1},
    "20 steps on the margin of logits": {"kind": "margin", "of": "logits"},
    "20 steps on the margin of probabilities": {"kind": "margin"},
    "PMA, 2 x 20 steps": {"kind": "pma", "steps": 20},
    "Auto-PGD 20 on DLR": {"kind": "apgd", "loss": "dlr", "steps": 20},
    "5 x 20 steps on the margin of probabilities": {"kind": "margin", "restarts": 5},
    "Auto-PGD 100 on the cross-entropy": {"kind": "apgd"},
    "Auto-PGD 100 on DLR": {"kind": "apgd", "loss": "dlr"},
    "Auto-PGD 100 towards the 9 likeliest": {"kind": "apgd", "loss": "dlr_targeted"},
    "Auto-PGD 40 towards the 3 nearest": {"kind": "apgd", "loss": "dlr_targeted", "order": "nearest", "targets": 3, "steps": 40},
    "Auto-PGD 20 towards the 5 nearest": {"kind": "apgd", "loss": "dlr_targeted", "order": "nearest", "targets": 5, "steps": 20},
    "PMA, 2 x 100 steps": {"kind": "pma"},
    "A3, 4 rounds": {"kind": "a3", "rounds": 4},
    "A3, 10 rounds": {"kind": "a3"},
    "Square, 500 queries": {"kind": "square", "queries": 500},
}
FIRST = tuple(ATTACKS)[:5]  # few steps, on all images
Standing = list[tuple[Evaluation, Outcomes]]


def standing(run: Path, images: int) -> Standing:
    """Each model of a run under each ball, before any attack."""
    asked = params.load(run / "params.yaml")
    test = load_split(run / "data/prepared", "test")
    if len(test) < images:
        raise Mistake(f"--images: {run} has only {len(test)} test images (got {images}). Ask for fewer.")
    x, y = test.floats(slice(0, images)), test.labels[:images]
    places = sorted(place.parent for place in (run / "models").glob("*/*/recipe.json"))
    models = [(f"{place.parent.name}/{place.name}", artifact.load(place).requires_grad_(False).eval()) for place in places]
    return [
        _untouched(name, model, ThreatModel(norm=norm, eps=radius * asked.threat.eps), x, y)
        for norm, radius in BALLS.items()
        for name, model in models
        if not random_layers(model)
        and (norm == asked.threat.norm or not (flows(model) or name.startswith("head/")))  # what takes long, once
    ]


def _untouched(name: str, model: nn.Module, ball: ThreatModel, x: Tensor, y: Tensor) -> tuple[Evaluation, Outcomes]:
    quick = search(model, x[:SEARCHED], y[:SEARCHED])
    evaluation = Evaluation(model, None, ball, (0, f"{name}, {ball.norm} {ball.eps:g}"), len(x), search=quick)
    return evaluation, evaluation.run(torch.arange(len(x)), x, y, {})


def after(models: Standing, name: str, attempt: Attempt) -> tuple[Standing, float, float]:
    """(where the models stand after an attempt, images that it broke in % of all, passes an image), the last two means over the models."""
    left: Standing = []
    for evaluation, outcomes in models:
        left.append((evaluation, copy.deepcopy(outcomes)))
        evaluation.attack(left[-1][1], name, attempt)
    pairs = [(before, now) for (_, before), (_, now) in zip(models, left)]
    broken = sum(before.robust - now.robust for before, now in pairs) / len(pairs)
    passes = sum((now.passes - before.passes) / len(now) for before, now in pairs) / len(pairs)
    return left, 100 * broken, passes


def rows(models: Standing) -> Iterator[list[dict[str, Any]]]:
    """The table of each round, the best first. What a candidate breaks per pass falls as images do, so one that was worse in an earlier
    round than another is in this one is not tried again (lazy greedy, Minoux 1978)."""
    last = dict.fromkeys(FIRST, math.inf)
    for k in range(1, ROUNDS + 1):
        tried: list[tuple[dict[str, Any], Standing]] = []
        for name in sorted(last, key=lambda name: -last[name]):
            if tried and last[name] <= max(row["rate"] for row, _ in tried):
                continue
            left, broken, passes = after(models, name, Attempt(choose("attacks", ATTACKS[name]), probe=PROBE if k > 1 else 0.0))
            last[name] = round(1e4 * broken / passes, 1) if passes else 0.0
            row = {"round": k, "attack": name, "broken": round(broken, 3), "passes": round(passes, 1), "rate": last[name], "chosen": 0}
            log.info("%(round)d %(attack)s: %(broken)s%% in %(passes)s passes", row)
            tried.append((row, left))
        tried.sort(key=lambda one: -one[0]["rate"])
        best, models = tried[0]
        best["chosen"] = int(best["broken"] > 0)
        yield [row for row, _ in tried]
        if not best["chosen"]:
            return
        last = dict.fromkeys(ATTACKS, math.inf) if k == 1 else last


def page(table: list[dict[str, Any]], models: Standing, command: str) -> str:
    names = [evaluation.seed[1] for evaluation, _ in models]
    about = (
        f"Made by `{command}` after `basin use suites` and `basin repro`, torch {version('torch')}, commit {commit()}, one thread, "
        f"{len(models[0][1])} images each of {len(models)} pairs of a model and a ball: {'; '.join(names)}. "
        "*Broken*: % of all images that the candidate broke of what the ones before it had left, a mean over the pairs; "
        "*passes*: an image, likewise; *rate*: images in 10,000 that a pass an image breaks. What was chosen stands in bold; "
        "what was worse in an earlier round than another is now was not tried again."
    )
    lines = ["# Which attack comes when", "", textwrap.fill(about, 140), ""]
    lines += ["| round | attack | broken | passes | rate |", "|---|---|---|---|---|"]
    lines += [_line(row) for row in table]
    return "\n".join(lines) + "\n\nThe figures as a file: [choice.csv](choice.csv).\n"


def _line(row: dict[str, Any]) -> str:
    bold = "**" if row["chosen"] else ""
    cells = (row["round"], f"{bold}{row['attack']}{bold}", f"{row['broken']:.2f}", f"{row['passes']:.1f}", row["rate"])
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choice", description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, default=Path(), help="the folder of the run of params/suites.yaml")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    models = standing(asked.run.resolve(), asked.images)
    table: list[dict[str, Any]] = []
    for part in rows(models):
        table += part
        write_csv(asked.folder / "choice.csv", FIELDS, table)
        command = f"python -m benchmarks.choice --images {asked.images}"
        (asked.folder / "choice.md").write_text(page(table, models, command), encoding="utf-8")


if __name__ == "__main__":
    as_command(main)
