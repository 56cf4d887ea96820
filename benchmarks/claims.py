"""Two claims, each under its paper's own attack and under exact gradients, side by side. Writes docs/results/claims.md, .csv.

    python -m benchmarks.claims [--run .] [--images 1000] [--few 150] [--folder docs/results]

Reads models/, data/prepared and params.yaml of the run's folder. Each attack is measured alone, on all images (slow ones: on the first
few), and judged by the reported function. Threat model, seed, batch and threads are the run's. A model that is not there is left out. What
is done is kept in .basin/benchmarks/claims.csv, from which an interrupted benchmark goes on.
"""

import argparse
import csv
import hashlib
import io
import json
import logging
import platform
import textwrap
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from basin import files
from basin.config import params
from basin.config.kinds import choose
from basin.config.solver import Solver
from basin.data.about import load_about
from basin.data.splits import load_split
from basin.errors import Mistake
from basin.evaluation.cascade import Evaluation
from basin.evaluation.interval import wilson
from basin.evaluation.ways import Attempt, Way
from basin.models import artifact, recipe
from basin.models.classifier import Classifier
from basin.models.ode import flows
from basin.report.pairs import Difference
from basin.threat.ball import ThreatModel
from basin.types import Images, Labels
from benchmarks import as_command

log = logging.getLogger(__name__)
Row = dict[str, str]  # of claims.csv
FIELDS = ("model", "eps", "attack", "gradient", "seed", "n", "held", "seconds", "bits", "key")
ATTACKS = {
    "FGSM": {"kind": "fgsm"},
    "PGD-20": {"kind": "pgd", "steps": 20, "step": 0.1},
    "PGD-100": {"kind": "pgd", "steps": 100, "step": 0.1},
    "Auto-PGD": {"kind": "apgd", "loss": "ce", "steps": 50},
    "transfer": {"kind": "transfer", "attacks": [{"kind": "apgd", "loss": "ce", "steps": 50}]},
    "DI2-FGSM": {"kind": "di2fgsm", "steps": 10, "step": 0.2},
    "Boundary": {"kind": "boundary", "queries": 500},
    "IFGSM-10": {"kind": "pgd", "steps": 10, "step": 0.2, "random_start": False},
    "IFGSM-10, whole steps": {"kind": "pgd", "steps": 10, "step": 1.0, "random_start": False},
    "IFGSM-100": {"kind": "pgd", "steps": 100, "step": 3 / 31, "random_start": False},
}


@dataclass(frozen=True)
class Line:
    """An attack with the gradient that the defence is attacked by; its twin is attacked by its own. `few`: on the first images alone."""

    side: str
    attack: str
    gradient: str = "own"
    few: bool = False

    @property
    def on_twin(self) -> str:
        """From the twin to itself, a transfer is the attack that is transferred."""
        return "Auto-PGD" if self.attack == "transfer" else self.attack


@dataclass(frozen=True)
class Claim:
    """`models` is a pattern; `radii` are shares of the run's radius, each with whether few images do there."""

    paper: str
    models: str
    radii: dict[float, bool]
    lines: list[Line]

    def on_few(self, share: float, line: Line) -> tuple[bool, bool]:
        """Whether few images do for the defence, and for the twin: unless another line has its attack on all of them."""
        alike = [other.few for other in self.lines if other.on_twin == line.on_twin]
        return self.radii[share] or line.few, self.radii[share] or all(alike)


ODE = [
    *(Line("paper", attack, "dopri5, adjoint", few=True) for attack in ("FGSM", "PGD-20", "DI2-FGSM")),
    Line("paper", "Boundary", few=True),
    *(Line("exact", attack, few=attack in ("DI2-FGSM", "PGD-100")) for attack in ("FGSM", "PGD-20", "DI2-FGSM", "PGD-100", "Auto-PGD")),
    Line("further", "PGD-20", "dopri5", few=True),
    Line("further", "PGD-20", "finer steps", few=True),
]
WNLL = [
    *(Line("paper", attack, "surrogate") for attack in ("FGSM", "IFGSM-10", "IFGSM-10, whole steps", "IFGSM-100")),
    *(Line("exact", attack, "exact") for attack in ("PGD-20", "Auto-PGD")),
    *(Line("further", attack, "soft") for attack in ("PGD-20", "Auto-PGD")),
    Line("further", "Auto-PGD", "surrogate"),
    Line("further", "transfer"),
]
TV = [
    *(replace(line, few=line.attack in ("Auto-PGD", "IFGSM-100")) for line in WNLL),
    Line("paper", "IFGSM-100", "surrogate, no purifier"),
    *(Line("further", attack, "identity") for attack in ("PGD-20", "Auto-PGD")),
]
# At the run's radius nets that were trained naturally hold next to nowhere, so few images do, and smaller radii are needed.
SMALLER = {1.0: True, 0.25: False, 0.1: False}
CLAIMS = [
    Claim("1", "backbone/odenet", SMALLER, ODE),
    Claim("1", "head/ode*", SMALLER, ODE),
    Claim("3", "head/wnll_pgd", {1.0: False}, WNLL),
    Claim("3", "head/wnll_pgd_tv", {1.0: False}, TV),
]
RIVAL = "backbone/residual"  # of a backbone; a head has its twin


def ways(model: nn.Module) -> dict[str, Way]:
    """Gradient -> where it is taken from."""
    steps = max((flow.solver.steps for flow in flows(model)), default=1)
    return {
        "own": Way(),
        "dopri5, adjoint": Way(solver=Solver(method="dopri5", tolerance=1e-3, gradient="adjoint")),
        "dopri5": Way(solver=Solver(method="dopri5", tolerance=1e-3)),
        "finer steps": Way(solver=Solver(method="rk4", steps=4 * steps)),
        "surrogate, no purifier": Way(gradient="surrogate", bare=True),
        **{name: Way(gradient=name) for name in ("exact", "surrogate", "soft", "identity")},
    }


@dataclass(frozen=True)
class Model:
    """A trained model; `digest` is of its weights and recipe."""

    name: str
    network: Classifier
    digest: str


def load(folder: Path) -> Model:
    network = artifact.load(folder).requires_grad_(False)
    digest = hashlib.sha256((recipe.weights_digest(folder) + json.dumps(network.recipe["classifier"])).encode()).hexdigest()
    return Model(network.recipe["model"], network, digest)


def pairs(run: Path, claim: Claim) -> Iterator[tuple[Model, Model]]:
    """Each defence that the claim is of with its twin; one that lacks either is left out."""
    found = sorted((run / "models").glob(claim.models))
    if not found:
        log.warning("models/%s: not in this run; left out", claim.models)
    for folder in found:
        twin = folder / recipe.TWIN if folder.parent.name == "head" else run / "models" / RIVAL
        if twin.exists():
            yield load(folder), load(twin)
        else:
            log.warning("models/%s: its twin is not in this run; left out", folder.relative_to(run / "models"))


@dataclass
class Case:
    """Images, threat model, and what is done. `about` is what every row depends on besides: data and code."""

    images: Images
    labels: Labels
    threat: ThreatModel
    seed: int
    batch: int
    few: int
    about: str
    place: Path
    done: dict[str, Row] = field(default_factory=dict)

    def row(self, model: Model, twin: Model, eps: float, attack: str, gradient: str, few: bool) -> Row:
        """Which images hold against this attack alone; attack "clean" is none."""
        n, way = min(self.few, len(self.labels)) if few else len(self.labels), ways(model.network)[gradient]
        attempts = {} if attack == "clean" else {attack: Attempt(choose("attacks", ATTACKS[attack]), way)}
        whole = (self.about, self.seed, self.batch, n, model.digest, twin.digest, self.threat.norm, eps, ATTACKS.get(attack), repr(way))
        key = hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:16]
        if key not in self.done:
            began = time.perf_counter()
            ball, purpose = self.threat.of_radius(eps), (self.seed, model.name)
            evaluation = Evaluation(model.network, twin.network, ball, purpose, self.batch, randomised=model.network.randomised)
            held = evaluation.run(torch.arange(n), self.images[:n], self.labels[:n], attempts).share > 0.5
            facts = (model.name, f"{eps:g}", attack, gradient, self.seed, n, int(held.sum()), f"{time.perf_counter() - began:.1f}")
            self.done[key] = dict(zip(FIELDS, map(str, (*facts, packed(held), key))))
            files.write(self.place, table(self.done.values()).encode())
        return self.done[key]


def packed(held: Tensor) -> str:
    """Hexadecimal, the first image in the highest bit."""
    return f"{int(''.join(map(str, held.int().tolist())), 2):0{(len(held) + 3) // 4}x}"


def unpacked(row: Row) -> Tensor:
    return torch.tensor([bit == "1" for bit in f"{int(row['bits'], 16):0{row['n']}b}"])


def table(rows: Iterable[Row]) -> str:
    written = io.StringIO()
    writer = csv.DictWriter(written, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue()


@dataclass(frozen=True)
class Comparison:
    """A defence and its twin at one radius: what each line found on both, clean images first."""

    claim: Claim
    eps: float
    clean: tuple[Row, Row]
    found: list[tuple[Line, Row, Row]]

    @property
    def names(self) -> tuple[str, str]:
        return self.clean[0]["model"], self.clean[1]["model"]

    def lines(self) -> Iterator[tuple[Line, Tensor, Tensor]]:
        """Which images hold: clean, line by line, and against all lines of a side, on the images that all of them saw."""
        yield Line("", "clean", ""), *map(unpacked, self.clean)
        for line, *rows in self.found:
            yield line, *both(rows)
        yield from self.worst()

    def worst(self) -> Iterator[tuple[Line, Tensor, Tensor]]:
        for side in ("paper", "exact", ""):
            taken = [both(rows) for line, *rows in self.found if side in ("", line.side)]
            n = min(len(held) for held, _ in taken)
            one, other = (torch.stack([held[:n] for held in column]).all(0) for column in zip(*taken))
            yield Line(side, "worst of these" if side else "worst of all", ""), one, other


def both(rows: list[Row]) -> tuple[Tensor, Tensor]:
    """On the images that both saw."""
    one, other = map(unpacked, rows)
    n = min(len(one), len(other))
    return one[:n], other[:n]


def compare(case: Case, run: Path) -> Iterator[Comparison]:
    plan = [(claim, pair, share) for claim in CLAIMS for pair in pairs(run, claim) for share in claim.radii]
    with tqdm(total=sum(len(claim.lines) for claim, *_ in plan), desc="claims", unit="attack", mininterval=2) as bar:
        for claim, (model, twin), share in plan:
            eps, found = case.threat.eps * share, []
            clean = case.row(model, twin, 0.0, "clean", "own", False), case.row(twin, twin, 0.0, "clean", "own", False)
            for line in claim.lines:
                few, few_of_twin = claim.on_few(share, line)
                mine = case.row(model, twin, eps, line.attack, line.gradient, few)
                found.append((line, mine, case.row(twin, twin, eps, line.on_twin, "own", few_of_twin)))
                bar.update()
            yield Comparison(claim, eps, clean, found)


# The page ---------------------------------------------------------------------------------------------------------------------------------

LEGEND = """
Accuracy in % with its 95% Wilson interval, then the share that this is of the images read rightly when clean. Every attack alone, on the
first n test images; every point projected into the ball and judged by the reported function, wherever the gradient came from. Difference:
defence minus twin, in points, with a 95% interval for paired images (Wald's, half an image added to each of four cells: Agresti & Min
2005). Sides: *paper*, the paper's own attack; *exact*, the exact gradient of the reported function; *further*, other functions of the same
weights. *Worst*: image by image. The twin is attacked by its own gradient, and where the defence gets a transfer, by Auto-PGD directly.
PGD-20, PGD-100: steps of a tenth of the radius, random start. Auto-PGD: cross-entropy, 50 steps. All but FGSM return the best point seen.
[claims.csv](claims.csv) has the counts, and in `bits` which images hold (hexadecimal, the first image in the highest bit)."""
PAPERS = {
    "1": """
Chu et al. 2020 (arXiv 2012.02452, abstract): naturally trained neural ODEs hold better than residual nets under FGSM, PGD, DI2-FGSM and the
Boundary Attack. Not published or not readable, and no code was found: architecture, solver, tolerance, gradient, radii, steps. What stands
for them here: dopri5 at tolerance 1e-3, as in torchdiffeq's ODE-Net example, with the adjoint gradient, which that example offers and does
not take by default (*dopri5*: the exact gradient of the same solve); DI2-FGSM with 10 steps of a fifth of the radius; for the Boundary
Attack its successor HopSkipJump with 500 queries. The steps of dopri5 are chosen for a batch together. *Finer steps*: rk4 with four times
as many.""",
    "3": """
Wang et al. (arXiv 1809.08516, abstract): an adversarially trained net holds better under IFGSM with a WNLL output layer than with softmax,
and better still behind total-variation minimisation. Their gradient is the linear layer's, *surrogate*. Settings are those of their code,
scaled to this radius: FGSM; *IFGSM-10*, 10 steps of 0.02 in a ball of 0.1 (2018, WNLL script, default eps), and with *whole steps* of the
radius (2018, softmax script); *IFGSM-100*, 100 steps of 0.003 in a ball of 0.031 (2019). Theirs moves template and test images together and
classifies a batch jointly; here each image is alone beside a fixed template. No code of their total-variation minimisation was found, so it
is not known whether their gradient went through it: *surrogate* does, *surrogate, no purifier* does not. *Soft*: of a mean over the whole
template. *Identity*: backwards as if the purifier were not there, the head's exact.""",
}


def paired(one: Tensor, other: Tensor) -> tuple[float, float, float]:
    """(share of `one` minus share of `other`, lower, upper end of its 95% interval), of the same images."""
    found = Difference(int((one & ~other).sum()), int((other & ~one).sum()), len(one))
    return found.value, *found.interval


def difference(one: Tensor, other: Tensor) -> str:
    d, low, high = (100 * value for value in paired(one, other))
    return f"{d:+.1f} [{low:+.1f}, {high:+.1f}]"


def accuracy(held: Tensor, clean: Tensor) -> str:
    k, n, right = int(held.sum()), len(held), int(clean[: len(held)].sum())
    low, high = wilson(k, n)
    return f"{100 * k / n:.1f} [{100 * low:.1f}, {100 * high:.1f}]; {100 * k / max(right, 1):.1f}"


def page(found: list[Comparison], made: str) -> str:
    lines = ["# Two claims, side by side", "", wrapped(made + " " + LEGEND)]
    for paper, text in PAPERS.items():
        of_it = [comparison for comparison in found if comparison.claim.paper == paper]
        lines += ["", f"## Paper {paper}", "", wrapped(text)] + [""] * bool(of_it)
        lines += [summary(comparison) for comparison in of_it]
        for comparison in of_it:
            lines += section(comparison)
    return "\n".join(lines) + "\n"


def summary(comparison: Comparison) -> str:
    """The difference by side, one line a comparison."""
    sides = [f"{line.side or 'all'} {difference(one, other)}, n = {len(one)}" for line, one, other in comparison.worst()]
    return f"- {comparison.names[0]} minus {comparison.names[1]}, radius {comparison.eps:g}, worst of each side: {'; '.join(sides)}."


def section(comparison: Comparison) -> Iterator[str]:
    yield from ("", f"### {comparison.names[0]}, radius {comparison.eps:g}", "")
    yield f"| side | attack | gradient | n | {comparison.names[0]} | {comparison.names[1]} | difference |"
    yield "|" + "---|" * 7
    clean = [unpacked(row) for row in comparison.clean]
    for line, *held in comparison.lines():
        cells = [line.side, line.attack, line.gradient, str(len(held[0])), *map(accuracy, held, clean), difference(*held)]
        yield "| " + " | ".join(cells) + " |"


def wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 140, break_on_hyphens=False)


# Running ----------------------------------------------------------------------------------------------------------------------------------


def prepare(asked: argparse.Namespace) -> Case:
    run, place = params.load(asked.run / "params.yaml"), Path(".basin/benchmarks/claims.csv")
    test, root = load_split(asked.run / "data/prepared", "test"), Path(__file__).parents[1]
    torch.set_num_threads(run.threads)
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((root / "pipeline").rglob("*.py")))
    about = hashlib.sha256((load_about(asked.run / "data/prepared").digest + code).encode()).hexdigest()
    images, labels = test.floats(slice(0, asked.images)), test.labels[: asked.images]
    done = {row["key"]: row for row in csv.DictReader(place.open(encoding="utf-8"))} if place.exists() else {}
    return Case(images, labels, ThreatModel.of(run.threat), run.seed, run.attack.batch, asked.few, about, place, done)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path(), help="the folder that holds models/, data/prepared and params.yaml")
    parser.add_argument("--images", type=int, default=1000, help="test images")
    parser.add_argument("--few", type=int, default=150, help="test images for slow attacks")
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    case = prepare(asked)
    found = list(compare(case, asked.run))
    if not found:
        raise Mistake(f"{asked.run / 'models'}: none of the models that are compared (got none). Train them: params/fashion_methods.yaml.")
    rows = {row["key"]: row for comparison in found for row in (*comparison.clean, *(row for _, *two in comparison.found for row in two))}
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchdiffeq"))
    data, took = load_about(asked.run / "data/prepared").name, sum(float(row["seconds"]) for row in rows.values())
    made = (
        f"Made by `python -m benchmarks.claims --images {asked.images} --few {asked.few}`: {data}, {len(case.labels)} test images, slow "
        f"attacks on the first {min(asked.few, len(case.labels))}, seed {case.seed}, {case.threat.norm}, one model of each; {versions}, "
        f"Python {platform.python_version()}, CPU, {torch.get_num_threads()} thread(s), {took / 60:.0f} min of wall time."
    )
    asked.folder.mkdir(parents=True, exist_ok=True)
    (asked.folder / "claims.md").write_text(page(found, made), encoding="utf-8")
    (asked.folder / "claims.csv").write_text(table(rows.values()), encoding="utf-8")


if __name__ == "__main__":
    as_command(main, logging.WARNING)
