"""A random network under three attacks, judged alike: `adaptive`, EOT-PGD, AutoAttack's `rand`. Writes docs/results/randomised.md, .csv.

    python -m benchmarks.randomised [--images 400] [--seeds 0 1] [--folder docs/results]

The network is one whose every parameter is a distribution, trained here on scikit-learn's digits. Whatever points an attack ends with, they
are judged over 100 fresh draws; `rand` in its authors' own loop also logs a figure, of the single passes that it happened to make.
"""

import argparse
import logging
import platform
import tempfile
import textwrap
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basin.config.kinds import choose
from basin.config.schedule import Schedule
from basin.config.splits import SplitSettings
from basin.config.suite import Adaptive, Suite
from basin.data.splits import Split, divide
from basin.evaluation import outcomes
from basin.evaluation.cascade import Counted, Evaluation
from basin.evaluation.outcomes import Outcomes
from basin.evaluation.robustness import evaluate
from basin.evaluation.ways import Attempt, Way
from basin.methods.sources import digits
from basin.models import artifact
from basin.models.classifier import Classifier
from basin.randomness import construct, drawing, generator
from basin.threat import foreign
from basin.threat.ball import ThreatModel
from basin.training import optimise
from basin.training.phase import Phase
from basin.types import Images, Labels
from benchmarks import as_command, write_csv

SCALE = 0.5
THREAT = ThreatModel(norm="linf", eps=0.1)
ADAPTIVE = Suite(adaptive=Adaptive(queries=5000))
DRAWS, BATCH = 20, 400
EOT = Attempt(choose("attacks", {"kind": "pgd", "steps": 100, "step": 0.1}), Way(draws=DRAWS))


def train(images: Split) -> Classifier:
    """PGD-trained, so that something is left for attacks to take, with scales that stay where they make draws differ."""
    backbone = {"kind": "distribution", "of": {"kind": "convnet", "channels": [8, 16], "hidden": 32}, "scale": SCALE, "local": False}
    tree = {"normalise": {"mean": [0.3], "std": [0.4]}, "backbone": backbone, "head": {"kind": "distribution", "scale": SCALE}}
    recipe = {"model": "backbone/distribution", "shape": [1, 8, 8], "classes": list(map(str, range(10))), "classifier": tree}
    with construct(0, "randomised"):
        model = artifact.build(recipe)
    method = choose("training", {"kind": "pgd", "steps": 5})
    schedule = Schedule(epochs=30, batch=64, rate=0.01, policy="one_cycle")
    parts = [model.backbone, model.head]
    phase = Phase("pgd", schedule, parts, lambda x, y, g: method.module.loss(method.params, model, x, y, THREAT, g))
    with tempfile.TemporaryDirectory() as folder:
        optimise.run(model, [phase], images, lambda: 0.0, (0, "randomised"), Path(folder) / "checkpoint.safetensors")
    return model.eval().requires_grad_(False)


def judged(model: Classifier, seed: int, x: Images, y: Labels, **given: Any) -> Outcomes:
    """Attempts or stored points, judged as `evaluate` judges its own."""
    evaluation = Evaluation(model, None, THREAT, (seed, "randomised"), BATCH, randomised=True)
    return evaluation.run(torch.arange(len(y)), x, y, given.get("attempts", {}), stored=given.get("stored"))


def rand(model: Classifier, seed: int, x: Images, y: Labels) -> tuple[Tensor, float, int]:
    """The points that `rand` returns, the robust accuracy that it logs, and the passes that it took."""
    from pyautoattack import AutoAttack

    logging.getLogger("auto-attack").disabled = True
    counted = Counted(model)
    with foreign.seeded(generator(seed, "randomised", "rand")) as number, drawing(model, generator(seed, "randomised", "passes")):
        attack = AutoAttack(foreign.sealed(counted), device="cpu", eps=THREAT.eps, norm="Linf", seed=number, version="rand")
        attack.verbose = False
        points, labels = attack.run_standard_evaluation(x, y, batch_size=len(x))
    return points, (labels == y).float().mean().item(), counted.passes


def measure(model: Classifier, seed: int, x: Images, y: Labels) -> list[dict[str, Any]]:
    rows = []

    def row(name: str, found: Outcomes, passes: int, started: float, logged: float | None = None) -> None:
        numbers = outcomes.measures(found)
        low, high = numbers["interval"]
        figures = {
            "robust": numbers["robust"],
            "low": low,
            "high": high,
            "ensemble": numbers["ensemble"]["robust"],
            "clean": numbers["clean"],
        }
        cost = {"passes": passes, "seconds": round(time.process_time() - started, 1)}
        rows.append({"seed": seed, "attack": name, "n": len(y)} | figures | {"logged": "" if logged is None else logged} | cost)
        logging.info("%s", rows[-1])

    started = time.process_time()
    ours = evaluate(model, None, x, y, THREAT, ADAPTIVE, (seed, "randomised"), BATCH).outcomes
    row("adaptive", ours, ours.passes, started)
    started = time.process_time()
    eot = judged(model, seed, x, y, attempts={"eot": EOT})
    row(f"EOT-PGD-100, {DRAWS} draws", eot, eot.passes, started)
    started = time.process_time()
    points, logged, passes = rand(model, seed, x, y)
    row("AutoAttack rand, its points", judged(model, seed, x, y, stored={"rand": points}), passes, started, logged)
    return rows


def page(rows: list[dict[str, Any]], command: str) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "pyautoattack"))
    about = (
        f"Made by `{command}`: {rows[0]['n']} test images of scikit-learn's digits, {THREAT.norm} {THREAT.eps:g}, one PGD-trained network "
        f"of distributions (scale {SCALE:g}, no prior), clean accuracy {rows[0]['clean']:.1%} over single draws; {versions}, Python "
        f"{platform.python_version()}, CPU, one thread. *robust*: expected over single draws, at the points that the attack ended with, "
        "over 100 fresh draws, in % with the 95% interval; *ensemble*: the same of ensembles of 20 draws; *logged*: what AutoAttack's own "
        "loop reports; passes: images passed through the network forwards, a draw each; seconds of processor time."
    )
    lines = ["# A random network, judged over draws", "", textwrap.fill(about, 140, break_on_hyphens=False), ""]
    lines += ["| seed | attack | robust | ensemble | logged | passes (millions) | seconds |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        robust = f"{100 * row['robust']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        logged = f"{100 * row['logged']:.1f}" if row["logged"] != "" else ""
        cells = [
            row["seed"],
            row["attack"],
            robust,
            f"{100 * row['ensemble']:.1f}",
            logged,
            f"{row['passes'] / 1e6:.1f}",
            f"{row['seconds']:.0f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.randomised", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400, help="test images, of 718")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    splits = divide(digits.read(digits.Params()), SplitSettings(test=0.4), 0)
    x, y = splits["test"].floats(slice(0, asked.images)), splits["test"].labels[: asked.images]
    model = train(splits["train"])
    rows = [row for seed in asked.seeds for row in measure(model, seed, x, y)]
    command = f"python -m benchmarks.randomised --images {asked.images} --seeds {' '.join(map(str, asked.seeds))}"
    asked.folder.mkdir(parents=True, exist_ok=True)
    (asked.folder / "randomised.md").write_text(page(rows, command), encoding="utf-8")
    write_csv(asked.folder / "randomised.csv", rows[0], rows)


if __name__ == "__main__":
    as_command(main)
