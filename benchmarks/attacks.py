"""Our attacks beside independent ones: the same models, images, ball and budget. Writes docs/results/attacks.md and .csv.

    python -m benchmarks.attacks [--images 600] [--seed 0] [--peers] [--folder docs/results]

Both sides see the images that the model reads rightly; both sides' points are projected and judged here. torchattacks, whose pins do not
fit ours, takes part with `--peers` (benchmarks/peers.py).
"""

import argparse
import importlib.util
import logging
import platform
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basin.config.kinds import choose
from basin.config.schedule import Schedule
from basin.config.splits import SplitSettings
from basin.data.splits import Split, divide
from basin.evaluation.interval import wilson
from basin.methods.sources import digits
from basin.models import artifact
from basin.randomness import construct, generator
from basin.threat import foreign
from basin.threat.ball import ThreatModel
from basin.threat.target import Target
from basin.training import optimise
from basin.training.phase import Phase
from basin.types import Images, Labels
from benchmarks import as_command, peers, write_csv

log = logging.getLogger(__name__)
WHOLE = "the four of AutoAttack"
LIBRARIES = ("torch", "pyautoattack", "foolbox", "torchattacks")
TRAINING = {"natural": {"kind": "natural"}, "pgd": {"kind": "pgd", "steps": 5}}
RADII = {("natural", "linf"): 0.04, ("pgd", "linf"): 0.1, ("natural", "l2"): 0.25, ("pgd", "l2"): 0.5}  # where some images hold, some fall
CONVNET, LINEAR = {"kind": "convnet", "channels": [8, 16], "hidden": 32}, {"kind": "linear"}
TRAINED_AT = ThreatModel(norm="linf", eps=0.1)


@dataclass(frozen=True)
class Case:
    """A model, a ball, and the images that the model reads rightly."""

    model: str
    network: nn.Module
    threat: ThreatModel
    images: Images
    labels: Labels
    seed: int

    def ours(self, tree: dict[str, Any]) -> Images:
        attack = choose("attacks", tree)
        draws = generator(self.seed, "ours", self.model, str(self.threat), str(attack))
        return attack.module.perturb(attack.params, Target(self.network, self.threat), self.images, self.labels, draws)

    def held(self, x: Images) -> Tensor:
        with torch.no_grad():
            return self.network(self.threat.project(x, self.images)).argmax(1) == self.labels

    def only(self, rows: Tensor) -> "Case":
        return Case(self.model, self.network, self.threat, self.images[rows], self.labels[rows], self.seed)


Theirs = Callable[[Case, int], Images]  # (case, seed) -> points


def foolbox(name: str, **settings: Any) -> Theirs:
    """An attack of Foolbox; {norm} in the name is Linf or L2."""

    def run(case: Case, seed: int) -> Images:
        import foolbox as fb

        attack = getattr(fb.attacks, name.format(norm=foreign.NORM[case.threat.norm]))(**settings)
        model = fb.PyTorchModel(case.network, bounds=(0, 1), device="cpu")
        return attack(model, case.images, case.labels, epsilons=case.threat.eps)[1]

    return run


def torchattacks(name: str, share: str, of: float, **settings: Any) -> Theirs:
    """An attack of torchattacks; its setting `share` is `of` times the radius."""

    def run(case: Case, seed: int) -> Images:
        import torchattacks as ta

        return getattr(ta, name)(case.network, eps=case.threat.eps, **{share: of * case.threat.eps}, **settings)(case.images, case.labels)

    return run


def hop_skip_jump(case: Case, seed: int) -> Images:
    """Foolbox's, from the points that ours starts from: without such points it stops with an error."""
    import foolbox as fb

    from basin.methods.attacks import boundary

    target = Target(case.network, case.threat)
    x, found = boundary._start(boundary.Params(), target, case.images, case.labels, torch.Generator().manual_seed(seed))
    model = fb.PyTorchModel(case.network, bounds=(0, 1), device="cpu")
    attack = fb.attacks.HopSkipJumpAttack(steps=8, constraint=case.threat.norm)
    x[found] = attack.run(model, case.images[found], fb.criteria.Misclassification(case.labels[found]), starting_points=x[found])
    return x


def apgd(loss: str) -> Theirs:
    def run(case: Case, seed: int) -> Images:
        from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

        silent = logging.Logger("pyautoattack")
        silent.disabled = True
        network, norm = foreign.sealed(case.network), foreign.NORM[case.threat.norm]
        common: dict[str, Any] = {"eps": case.threat.eps, "norm": norm, "seed": seed, "device": "cpu", "logger": silent}
        attack = APGDAttack_targeted(network, **common) if loss == "targeted" else APGDAttack(network, loss=loss, **common)
        return attack.perturb(case.images, case.labels)

    return run


def square(case: Case, seed: int) -> Images:
    from pyautoattack.square import SquareAttack

    network, norm = foreign.sealed(case.network), foreign.NORM[case.threat.norm]
    return SquareAttack(network, norm, 2000, case.threat.eps, seed=seed, device="cpu").perturb(case.images, case.labels)


def autoattack(case: Case, seed: int) -> Images:
    """The standard version, in its own loop."""
    from pyautoattack import AutoAttack

    logging.getLogger("auto-attack").disabled = True
    norm = foreign.NORM[case.threat.norm]
    attack = AutoAttack(foreign.sealed(case.network), device="cpu", eps=case.threat.eps, norm=norm, seed=seed)
    return attack.run_standard_evaluation(case.images, case.labels, batch_size=len(case.images))[0]


SLOW = ("Square", "CW", "HopSkipJump")  # compared on one model
APGD_CE, APGD_T = {"kind": "apgd", "loss": "ce"}, {"kind": "apgd", "loss": "dlr_targeted"}
FAB, SQUARE = {"kind": "fab"}, {"kind": "square", "queries": 5000}
I_FGSM = {"kind": "pgd", "random_start": False}
PGD_THEIRS = {"steps": 20, "rel_stepsize": 0.1}
# (attack, ours, theirs in words, theirs, whether draws decide it); ours is one attack or several in a row
Pair = tuple[str, list[dict[str, Any]], str, Theirs, bool]
PAIRS: list[Pair] = [
    ("FGSM", [{"kind": "fgsm"}], "Foolbox FastGradientAttack", foolbox("{norm}FastGradientAttack"), False),
    ("I-FGSM, 20 steps", [I_FGSM], "Foolbox PGD, no random start", foolbox("{norm}PGD", random_start=False, **PGD_THEIRS), False),
    (
        "MI-FGSM, 20 steps", [I_FGSM | {"momentum": 1.0}], "Foolbox MomentumIterativeFastGradientMethod",
        foolbox("{norm}MomentumIterativeFastGradientMethod", **PGD_THEIRS), False,
    ),
    ("PGD, 20 steps", [{"kind": "pgd"}], "Foolbox PGD", foolbox("{norm}PGD", **PGD_THEIRS), True),
    ("APGD-CE", [APGD_CE], "pyautoattack", apgd("ce"), True),
    ("APGD-DLR", [{"kind": "apgd", "loss": "dlr"}], "pyautoattack", apgd("dlr"), True),
    ("APGD-T", [APGD_T], "pyautoattack", apgd("targeted"), True),
    ("Square, 2000 queries", [SQUARE | {"queries": 2000}], "pyautoattack", square, True),
    (
        "CW, 9 x 200 steps", [{"kind": "cw"}], "Foolbox L2CarliniWagnerAttack",
        foolbox("L2CarliniWagnerAttack", steps=200, stepsize=0.05), False,
    ),
    ("HopSkipJump, 2000 queries", [{"kind": "boundary", "queries": 2000}], "Foolbox HopSkipJump, 8 steps", hop_skip_jump, True),
    (WHOLE, [APGD_CE, APGD_T, FAB, SQUARE], "AutoAttack standard", autoattack, True),
]  # fmt: skip
LINF: list[Pair] = [  # torchattacks knows no other
    ("DI2-FGSM, 20 steps", [{"kind": "di2fgsm"}], "torchattacks DIFGSM", torchattacks("DIFGSM", "alpha", 0.1, steps=20), True),
    (
        "SPSA, 20 x 128 queries", [{"kind": "spsa", "steps": 20, "samples": 64}], "torchattacks SPSA",
        torchattacks("SPSA", "lr", 0.3, nb_iter=20, nb_sample=64), True,
    ),
]  # fmt: skip


def cascade(case: Case, attacks: list[dict[str, Any]]) -> Tensor:
    """Which images hold against all attacks; what one breaks is not given to the next."""
    held = torch.ones_like(case.labels, dtype=torch.bool)
    for attack in attacks:
        rows = held.nonzero().flatten()
        held[rows] = case.only(rows).held(case.only(rows).ours(attack)) if len(rows) else held[rows]
    return held


def train(name: str, images: Split, seed: int, backbone: dict[str, Any] = CONVNET, head: dict[str, Any] = LINEAR) -> nn.Module:
    """A small network of digits, in evaluation mode, frozen."""
    tree = {"normalise": {"mean": [0.3], "std": [0.4]}, "backbone": backbone, "head": head}
    recipe = {"model": f"backbone/{name}", "shape": [1, 8, 8], "classes": list(map(str, range(10))), "classifier": tree}
    with construct(seed, name):
        model = artifact.build(recipe)
    method = choose("training", TRAINING[name])
    schedule = Schedule(epochs=15, batch=64, rate=0.01, policy="one_cycle")
    parts = [model.backbone, model.head]
    phase = Phase(name, schedule, parts, lambda x, y, g: method.module.loss(method.params, model, x, y, TRAINED_AT, g))
    with tempfile.TemporaryDirectory() as folder:
        optimise.run(model, [phase], images, lambda: 0.0, (seed, name), Path(folder) / "checkpoint.safetensors")
    return model.eval().requires_grad_(False)


def measure(case: Case, n: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    others = LINF if case.threat.norm == "linf" and importlib.util.find_spec("torchattacks") else []
    for attack, ours, library, theirs, drawn in [*PAIRS, *others]:
        if (case.model == "natural" and attack.split(",")[0] in SLOW) or (case.threat.norm == "linf" and attack.startswith("CW")):
            continue
        here = cascade(case, ours)
        with foreign.seeded(generator(case.seed, "theirs", case.model, str(case.threat), attack)) as seed:
            there = case.held(theirs(case, seed))
        row = {"model": case.model, "norm": case.threat.norm, "eps": case.threat.eps, "n": n, "attack": attack, "against": library}
        row |= {"ours": int(here.sum()), "theirs": int(there.sum()), "drawn": int(drawn)}
        rows.append(row | {"only_ours": int((there & ~here).sum()), "only_theirs": int((here & ~there).sum())})
        log.info("%(model)s %(norm)s %(attack)s: %(ours)d ours, %(theirs)d theirs (%(against)s) of %(n)d", rows[-1])
    return rows


def page(rows: list[dict[str, Any]], accuracies: dict[str, float], command: str, seed: int) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES if importlib.util.find_spec(name))
    n = rows[0]["n"]
    about = (
        f"Made by `{command}`: {n} test images of scikit-learn's digits, one seed ({seed}), one model each; {versions}, Python "
        f"{platform.python_version()}, CPU, one thread. Robust accuracy in %, 95% Wilson interval. Both sides attack the same images with "
        "the same budget, and both sides' points are projected into the ball and judged by the same code. The last columns count images "
        "that one side alone broke. *: draws decide, another seed moves it. [attacks.csv](attacks.csv) has the counts."
    )
    lines = ["# Our attacks beside others'", "", textwrap.fill(about, 140), "", textwrap.fill(summary(rows), 140), ""]
    for model, norm, eps in dict.fromkeys((row["model"], row["norm"], row["eps"]) for row in rows):
        lines += [f"## {model}, {norm} {eps:g}", "", f"Clean accuracy {accuracies[model]:.1%}.", ""]
        lines += ["| attack | ours | against | theirs | difference | only ours | only theirs |", "|---|---|---|---|---|---|---|"]
        lines += [cells(row) for row in rows if (row["model"], row["norm"]) == (model, norm)] + [""]
    return "\n".join(lines + [NOTES])


def cells(row: dict[str, Any]) -> str:
    def share(k: int) -> str:
        low, high = wilson(k, row["n"])
        return f"{100 * k / row['n']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"

    difference = f"{100 * (row['ours'] - row['theirs']) / row['n']:+.1f}"
    star = "*" if row["drawn"] else ""
    values = [
        row["attack"] + star,
        share(row["ours"]),
        row["against"],
        share(row["theirs"]),
        difference,
        row["only_ours"],
        row["only_theirs"],
    ]
    return f"| {' | '.join(map(str, values))} |"


def summary(rows: list[dict[str, Any]]) -> str:
    def widest(chosen: list[dict[str, Any]]) -> str:
        differences = [100 * (row["ours"] - row["theirs"]) / row["n"] for row in chosen]
        return f"from {min(differences):+.1f} to {max(differences):+.1f}"

    whole = [row for row in rows if row["attack"] == WHOLE]
    fixed, drawn = ([row for row in rows if row["drawn"] == k and row not in whole] for k in (0, 1))
    return (
        f"Ours minus theirs, in points (below 0: ours is stronger): {widest(whole)} for the whole suite, {widest(fixed)} for deterministic "
        f"attacks, {widest(drawn)} for the others."
    )


NOTES = """## Where they differ by design
- PGD, I-FGSM: of all points visited ours returns the best; Foolbox returns the last iterate.
- MI-FGSM: ours divides each gradient by its mean absolute value, as the paper does; Foolbox adds the gradients as they are.
- Square: each image has its own squares with ours; with pyautoattack a batch shares one. Ours scales the schedule of p to the number of
  queries; AutoAttack runs 5,000 queries of the schedule for 10,000.
- CW: Foolbox stops the whole batch when the sum of its losses stops falling; ours runs every step.
- DI2-FGSM: torchattacks draws one view a step for the whole batch, in bilinear interpolation; ours one an image, from the nearest pixels.
- SPSA: torchattacks goes on after an image is broken; ours stops there.
- HopSkipJump: Foolbox divides the estimated normal by its norm over the batch; ours by each image's. Foolbox's query count has no limit.
- the four of AutoAttack: ours are APGD-CE, targeted APGD-DLR, FAB, Square; AutoAttack's APGD-CE, APGD-T, FAB-T, Square, in its own loop.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=600, help="test images, of 718")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", action="store_true", help="with libraries that are installed for as long as it lasts")
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    with peers.importable(asked.peers):
        run(asked)


def run(asked: argparse.Namespace) -> None:
    splits = divide(digits.read(digits.Params()), SplitSettings(test=0.4), asked.seed)
    images, labels = splits["test"].floats(slice(0, asked.images)), splits["test"].labels[: asked.images]
    rows, accuracies = [], {}
    for name in TRAINING:
        network = train(name, splits["train"], asked.seed)
        right = network(images).argmax(1) == labels
        accuracies[name] = right.float().mean().item()
        for norm in ("linf", "l2"):
            threat = ThreatModel(norm=norm, eps=RADII[name, norm])  # type: ignore[arg-type]
            rows += measure(Case(name, network, threat, images[right], labels[right], asked.seed), len(images))
    asked.folder.mkdir(parents=True, exist_ok=True)
    command = f"python -m benchmarks.attacks --images {asked.images} --seed {asked.seed}"
    (asked.folder / "attacks.md").write_text(page(rows, accuracies, command, asked.seed), encoding="utf-8")
    write_csv(asked.folder / "attacks.csv", rows[0], rows)


if __name__ == "__main__":
    as_command(main)
