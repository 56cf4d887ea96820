"""What each gradient finds on SODEF heads as T grows: released form, both released weightings. Writes docs/results/sodef_sweep.md, .csv.

    python -m benchmarks.sodef_sweep [models/backbone/natural models/adversarial/pgd ...] [--run .] [--images 1000] [--seed 0]
                                     [--epochs 3 3 3] [--solver rk4 [dopri5]] [--folder docs/results]

Reads trained models and data/prepared of the run's folder, and attacks test images at the radius that the models were trained for. The
judged function is the head's own solver. Phases 1 and 2 do not integrate, so heads that differ in T or solver alone share them. A sweep
that was interrupted goes on from .basin/benchmarks.
"""

import argparse
import hashlib
import json
import logging
import platform
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from basin import files
from basin.config import schedule
from basin.config.kinds import choose
from basin.config.solver import Solver
from basin.data.about import load_about
from basin.data.splits import Split, load_split
from basin.evaluation.interval import wilson
from basin.methods.heads import sodef
from basin.models import artifact, recipe
from basin.models.classifier import Classifier
from basin.models.lyapunov import gain
from basin.models.ode import solving_with
from basin.models.stability import starts, stiffness
from basin.randomness import construct, generator
from basin.threat.ball import ThreatModel
from basin.threat.target import Target, gradient
from basin.training import optimise
from basin.types import Images, Labels, Logits
from benchmarks import as_command, write_csv

WEIGHTS = {"c": {"w_diag": 10.0, "w_off": 0.0, "w_f": 0.1}, "m": {"w_diag": 10.0, "w_off": 10.0, "w_f": 0.2}}  # CIFAR-10's, MNIST's
TIMES = (1.0, 3.0, 5.0, 10.0)
SOLVERS = {"rk4": Solver(), "dopri5": Solver(method="dopri5", tolerance=1e-3)}
ADJOINT = Solver(method="dopri5", tolerance=1e-3, gradient="adjoint")
FIXED = {"rk4": Solver(), "dopri5": Solver(steps=64)}  # whose gradient "fixed" is, by the head's own solver
PGD = choose("attacks", {"kind": "pgd", "steps": 20, "step": 0.1})
ATTACKS = ("adjoint", "odeint", "fixed", "transfer", "worst")
ADAM: dict[str, Any] = {"batch": 128, "rate": 0.01}


@dataclass(frozen=True)
class Case:
    """A trained model below the heads, the images, and where what is done is kept."""

    model: str
    twin: Classifier
    threat: ThreatModel
    train: Split  # its features as images of one pixel: the backbone stays as it is, so that once is enough
    images: Images
    labels: Labels
    seed: int
    epochs: tuple[int, int, int]
    place: Path

    def batches(self, what: str) -> Iterator[tuple[int, Images, Labels]]:
        """Of 250: dopri5 takes one step size for all images of a batch."""
        parts = list(zip(self.images.split(250), self.labels.split(250)))
        for b, (x, y) in enumerate(tqdm(parts, desc=f"{self.model}: {what}", unit="batch", delay=2, mininterval=2)):
            yield b, x, y


def head(case: Case, weights: str, T: float, solver: str) -> Classifier:
    """A trained head; each phase is run once for all heads that share it."""
    below = case.twin.recipe
    params = {"kind": "sodef", "T": T, "width": min(64, case.twin.backbone.width), "solver": SOLVERS[solver].model_dump()}
    with construct(case.seed, "sodef_sweep", case.model):
        model = artifact.build(below | {"classifier": below["classifier"] | {"head": params}})
    model.backbone.load_state_dict(case.twin.backbone.state_dict())
    schedules = sodef.Schedules(
        features=schedule.Schedule(epochs=case.epochs[0], **ADAM),
        stability=sodef.Stability(epochs=case.epochs[1], **ADAM, epsilon=0.001, amsgrad=True, **WEIGHTS[weights]),
        classifier=schedule.Schedule(epochs=case.epochs[2], **ADAM),
    )
    seen = nn.Flatten()
    seen.width = case.twin.backbone.width
    over = Classifier(nn.Identity(), nn.Identity(), seen, model.head, {})
    phases = sodef.phases(schedules, over, lambda network, z, y, g: nn.functional.cross_entropy(network(z), y), case.train)
    for phase, name in zip(phases, ("features", f"stability-{weights}", f"classifier-{weights}-{T:g}-{solver}")):
        done = case.place / f"{name}.safetensors"
        if not done.exists():
            purpose = (case.seed, f"{case.model}, {name}")
            optimise.run(over, [phase], case.train, lambda: 0.0, purpose, case.place / f"{name}.checkpoint")
            files.write(done, save(over.state_dict()))
        over.load_state_dict(load_file(done))
    return model.eval().requires_grad_(False)


def attacked(case: Case, model: Classifier, solver: Solver, what: str) -> Images:
    """The points that PGD finds with this solver's function and gradient."""
    with solving_with(model, solver):
        found = [
            PGD.module.perturb(PGD.params, Target(model, case.threat), x, y, generator(case.seed, "attack", b))
            for b, x, y in case.batches(what)
        ]
    return case.threat.project(torch.cat(found), case.images)


@torch.no_grad()
def right(case: Case, model: Classifier, images: Images) -> Tensor:
    """Which images the judged function classifies right."""
    logits: list[Logits] = [model(x) for x in images.split(250)]
    return torch.cat(logits).argmax(1) == case.labels


def cosines(case: Case, model: Classifier) -> Tensor:
    """Of the adjoint and the exact gradient of the same dopri5 solve, at each image; 0 where the adjoint fails."""

    def taken(solver: Solver, x: Images, y: Labels) -> Tensor:
        with solving_with(model, solver):
            return gradient(model, x, y)[0].double().flatten(1)

    pairs = [(taken(ADJOINT, x, y), taken(SOLVERS["dopri5"], x, y)) for _, x, y in case.batches("cosine")]
    return torch.cat([nn.functional.cosine_similarity(a, b, dim=1, eps=1e-60) for a, b in pairs])


def measure(case: Case, model: Classifier, transferred: Images, name: str, solver: str) -> dict[str, Any]:
    """Counts of images that hold against each attack alone and against all, and what the flow is like."""
    (flow, z0), clean = starts(model, case.images[:64])[0], right(case, model, case.images)
    points = {
        "adjoint": attacked(case, model, ADJOINT, f"{name}, adjoint"),
        "odeint": attacked(case, model, SOLVERS["dopri5"], f"{name}, odeint"),
        "fixed": attacked(case, model, FIXED[solver], f"{name}, fixed"),
        "transfer": transferred,
    }
    held = {attack: clean & right(case, model, x) for attack, x in points.items()}
    held["worst"] = torch.stack(list(held.values())).all(0)
    quartiles = cosines(case, model).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    row = {"gain": gain(flow.drift).item(), "stiffness": stiffness(flow, z0), **dict(zip(("q1", "median", "q3"), quartiles))}
    return {key: round(value, 4) for key, value in row.items()} | {"clean": int(clean.sum())} | {a: int(held[a].sum()) for a in ATTACKS}


def sweep(case: Case, solvers: list[str]) -> Iterator[dict[str, Any]]:
    """A row for the twin, attacked by its own gradient, then one a head."""
    transferred = attacked(case, case.twin, Solver(), "linear twin")
    clean = right(case, case.twin, case.images)
    about = {"model": case.model, "n": len(case.labels), "eps": case.threat.eps}
    yield about | {"weights": "twin", "clean": int(clean.sum()), "worst": int((clean & right(case, case.twin, transferred)).sum())}
    for weights, solver, T in ((weights, solver, T) for weights in WEIGHTS for solver in solvers for T in TIMES):
        name = f"{weights}, T {T:g}, {solver}"
        done = case.place / f"{weights}-{T:g}-{solver}.json"
        if not done.exists():
            files.write(done, json.dumps(measure(case, head(case, weights, T, solver), transferred, name, solver)).encode())
        yield about | {"weights": weights, "T": T, "solver": solver} | json.loads(done.read_text(encoding="utf-8"))


LEGEND = f"""\
Python {platform.python_version()}, CPU, one thread. Accuracy in % with its 95% Wilson interval, under PGD with 20 steps of a tenth of the
radius, judged by the head's own solver, with which it was trained (rk4 with 16 steps, or dopri5 at tolerance 1e-3 as in the papers). The
columns are where PGD takes its function and gradient from: *adjoint* and *odeint*, dopri5 at 1e-3 by the adjoint method and through the
solver's steps; *fixed*, rk4 with 16 steps (64 for a dopri5 head); *transfer*, the linear twin; *worst*, image by image over the four.
Weights: c diag 10, off 0, f 0.1; m diag 10, off 10, f 0.2. h|λ|: T/16, rk4's step, times the largest modulus of an eigenvalue of J at the
first 64 images; above 2.785 rk4 does not follow the ODE; |λ|T is 16 times it. Cosine: of the adjoint and the exact input gradient of the
same dopri5 solve, median [quartiles]. [sodef_sweep.csv](sodef_sweep.csv) has the counts."""


def share(k: int, n: int) -> str:
    low, high = wilson(k, n)
    return f"{100 * k / n:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def page(rows: list[dict[str, Any]], command: str, data: str, seed: int) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchdiffeq"))
    made = f"Made by `{command}`: {data}, {rows[0]['n']} test images, seed {seed}, one head each; {versions}, "
    lines = ["# SODEF over the integration time", "", textwrap.fill(made + LEGEND, 140, break_on_hyphens=False)]
    for twin in (row for row in rows if row["weights"] == "twin"):
        n = twin["n"]
        lines += [
            "", f"## On {twin['model']}, radius {twin['eps']:g}", "",
            f"Linear twin: clean {share(twin['clean'], n)}, PGD by its own gradient {share(twin['worst'], n)}.", "",
            "| weights | solver | T | h\\|λ\\| | cosine | clean | adjoint | odeint | fixed | transfer | worst |", "|" + "---|" * 11,
        ]  # fmt: skip
        lines += [cells(row) for row in rows if row["model"] == twin["model"] and row is not twin]
    return "\n".join(lines) + "\n"


def cells(row: dict[str, Any]) -> str:
    cosine = f"{row['median']:.2f} [{row['q1']:.2f}, {row['q3']:.2f}]"
    shares = [share(row[name], row["n"]) for name in ("clean", *ATTACKS)]
    return "| " + " | ".join([row["weights"], row["solver"], f"{row['T']:g}", f"{row['stiffness']:.2f}", cosine, *shares]) + " |"


@torch.no_grad()
def features(model: Classifier, split: Split) -> Split:
    parts = tqdm(torch.arange(len(split)).split(500), desc="features", unit="batch", delay=2, mininterval=2)
    z = torch.cat([model.features(split.floats(rows)) for rows in parts])
    return Split(z[:, :, None, None], split.labels)


def load(folder: Path, asked: argparse.Namespace) -> Case:
    """A model of the run with its images; what is done is kept under everything that it depends on."""
    prepared, twin = asked.run / "data/prepared", artifact.load(asked.run / folder).requires_grad_(False)
    test, seed, epochs = load_split(prepared, "test"), asked.seed, tuple(asked.epochs)
    root = Path(__file__).parents[1]
    code = [path.read_text(encoding="utf-8") for path in sorted([*(root / "pipeline").rglob("*.py"), Path(__file__)])]
    key = json.dumps(
        [load_about(prepared).digest, recipe.weights_digest(asked.run / folder), twin.recipe, seed, epochs, asked.images, code]
    )
    place = Path(".basin/benchmarks/sodef_sweep", hashlib.sha256(key.encode()).hexdigest()[:16])
    images, labels = test.floats(slice(0, asked.images)), test.labels[: asked.images]
    threat = ThreatModel.model_validate(twin.recipe["threat"])
    return Case(twin.recipe["model"], twin, threat, features(twin, load_split(prepared, "train")), images, labels, seed, epochs, place)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sodef_sweep", description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="*", default=[Path("models/backbone/natural"), Path("models/adversarial/pgd")])
    parser.add_argument("--run", type=Path, default=Path(), help="the folder that holds models/ and data/prepared")
    parser.add_argument("--images", type=int, default=1000, help="test images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, nargs=3, default=[3, 3, 3], help="of the phases features, stability, classifier")
    parser.add_argument("--solver", choices=SOLVERS, nargs="+", default=["rk4"], help="of the heads: trained and judged with it")
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    cases = [load(folder, asked) for folder in asked.models]
    rows = [row for case in cases for row in sweep(case, asked.solver)]
    words = [*asked.models, "--images", asked.images, "--seed", asked.seed, "--epochs", *asked.epochs, "--solver", *asked.solver]
    command = " ".join(map(str, ["python -m benchmarks.sodef_sweep", *words]))
    asked.folder.mkdir(parents=True, exist_ok=True)
    (asked.folder / "sodef_sweep.md").write_text(
        page(rows, command, load_about(asked.run / "data/prepared").name, asked.seed), encoding="utf-8"
    )
    write_csv(asked.folder / "sodef_sweep.csv", rows[0] | rows[-1], rows)


if __name__ == "__main__":
    as_command(main, logging.WARNING)
