"""Robust accuracy: the per-image worst case over a suite of attacks, with an outcome for every image.

The suite runs as a cascade: an image that one attack broke is not given to the next. Every candidate is projected into the ball and
judged here, by the reported function, whatever the attack says of it.
"""

import csv
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import Module
from tqdm import tqdm

from pipeline import files
from pipeline.attacks import Target, cross_entropy_each
from pipeline.lookup import Choice
from pipeline.ode import Solver, solving_with
from pipeline.randomness import generator
from pipeline.threat import TOLERANCE, ThreatModel
from pipeline.types import Images, Labels, Logits, Network

log = logging.getLogger(__name__)
Z95 = 1.959963984540054
FIELDS = ("image", "label", "clean", "adversarial", "robust", "attack", "distance", "loss", "masked")


def wilson(k: int, n: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a share k/n (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = k / n, Z95**2
    centre, half = p + z2 / (2 * n), Z95 * (p * (1 - p) / n + z2 / (4 * n * n)) ** 0.5
    return 0.0 if k == 0 else (centre - half) / (1 + z2 / n), 1.0 if k == n else (centre + half) / (1 + z2 / n)


class Counted:
    """A network that counts the images passed through it."""

    def __init__(self, network: Network):
        self.network, self.passes = network, 0

    def __call__(self, x: Images) -> Logits:
        self.passes += len(x)
        return self.network(x)


@dataclass
class Outcomes:
    """One row an image. `points` are the breaking ones, else those of highest loss found; `attack` is "" where the image held."""

    index: Labels
    labels: Labels
    images: Images
    clean: Labels
    points: Images
    loss: Tensor
    attack: list[str]
    adversarial: Labels
    masked: Tensor | None = None  # robust under the wrong gradient alone
    after: dict[str, float] = field(default_factory=dict)  # attack -> robust accuracy after it
    curve: list[tuple[float, float]] = field(default_factory=list)
    under: dict[str, str] = field(default_factory=dict)  # "masked", "curve" -> the attack behind it, in words
    passes: int = 0

    @property
    def robust(self) -> Tensor:
        return torch.tensor([name == "" for name in self.attack])

    def __len__(self) -> int:
        return len(self.labels)

    def record(self, name: str, rows: Tensor, x: Images, logits: Logits) -> Tensor:
        """Take the candidates that break their image, or that have a higher loss than the stored point; the rows that are broken."""
        loss, prediction = cross_entropy_each(logits, self.labels[rows]), logits.argmax(1)
        broken = prediction != self.labels[rows]
        taken = broken | (loss > self.loss[rows])
        self.points[rows[taken]], self.loss[rows[taken]], self.adversarial[rows[taken]] = x[taken], loss[taken], prediction[taken]
        for row in rows[broken].tolist():
            self.attack[row] = name
        return rows[broken]


@dataclass
class Evaluation:
    """A suite on a model. `classifier` is in evaluation mode, its parameters frozen; images are in [0, 1]."""

    classifier: Module
    twin: Module | None
    threat: ThreatModel
    seed: tuple[int, str]
    batch: int
    checkpoint: Path | None = None

    def run(
        self,
        index: Labels,
        images: Images,
        labels: Labels,
        attacks: Mapping[str, Choice],
        masked: tuple[Choice, Solver] | None,
        curve: tuple[Choice, list[float]] | None,
    ) -> Outcomes:
        """Clean pass, wrong-gradient pass, cascade, curve. An interrupted run goes on after the last finished attack."""
        outcomes, finished = self._resume(index, images, labels)
        steps: list[Callable[[], None]] = [partial(self._masked, outcomes, *masked)] if masked else []
        for name, attack in attacks.items():
            if self.twin is not None or not getattr(attack.module, "NEEDS_TWIN", False):
                steps.append(partial(self._cascade, outcomes, name, attack))
        if curve:
            steps.append(partial(self._curve, outcomes, *curve))
        for position, step in enumerate(steps[finished:], start=finished):
            step()
            self._save(outcomes, position + 1)
        if self.checkpoint:
            self.checkpoint.unlink(missing_ok=True)
        return outcomes

    def _cascade(self, o: Outcomes, name: str, attack: Choice) -> None:
        """One attack on the images that still hold."""
        alive = o.robust.nonzero().flatten()
        for candidates in self._candidates(o, alive, name, attack, self.threat):
            o.record(name, *candidates)
        o.after[name] = int(o.robust.sum()) / len(o)

    def _masked(self, o: Outcomes, attack: Choice, solver: Solver) -> None:
        """The attack with another solver's gradient, alone, judged by the reported function; what it breaks counts like any other break."""
        o.masked = o.clean == o.labels
        o.under["masked"] = f"{attack}, {solver.gradient} gradient of {solver.method}"
        name = f"{attack.kind} ({solver.gradient} gradient)"
        alive = o.masked.nonzero().flatten()
        for candidates in self._candidates(o, alive, name, attack, self.threat, lambda: solving_with(self.classifier, solver)):
            o.masked[o.record(name, *candidates)] = False

    def _curve(self, o: Outcomes, attack: Choice, radii: list[float]) -> None:
        """Robust accuracy at rising radii; an image broken at one is broken at all larger ones, whose balls contain the point."""
        alive = (o.clean == o.labels).nonzero().flatten()
        o.under["curve"] = str(attack)
        o.curve = [(0.0, len(alive) / len(o))]
        for eps in radii:
            held = [
                rows[logits.argmax(1) == o.labels[rows]]
                for rows, _, logits in self._candidates(o, alive, f"curve {eps}", attack, self.threat.of_radius(eps))
            ]
            alive = torch.cat(held) if held else alive
            o.curve.append((eps, len(alive) / len(o)))

    def _candidates(
        self,
        o: Outcomes,
        rows: Tensor,
        name: str,
        attack: Choice,
        threat: ThreatModel,
        gradient: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Iterator[tuple[Tensor, Images, Logits]]:
        """(rows, projected candidates, the reported function's logits there), batch by batch."""
        device = next(self.classifier.parameters()).device
        batches = rows.split(self.batch) if len(rows) else ()  # of no rows torch makes one batch
        for b, chosen in enumerate(tqdm(batches, desc=f"{self.seed[1]}: {name}", unit="batch", mininterval=2, delay=2)):
            clean, labels = o.images[chosen].to(device), o.labels[chosen].to(device)
            counted = Counted(self.classifier)
            draws = generator(*self.seed, name, b, device=device)
            with gradient():
                x = attack.module.perturb(attack.params, Target(counted, threat, self.twin), clean, labels, draws)
            x = threat.project(x.detach(), clean)
            assert bool((threat.distance(x, clean) <= threat.eps + TOLERANCE).all()), f"{name} left the ball"
            with torch.no_grad():
                logits = counted(x)
            o.passes += counted.passes
            yield chosen, x.cpu(), logits.cpu()

    def _resume(self, index: Labels, images: Images, labels: Labels) -> tuple[Outcomes, int]:
        """The state at the checkpoint, or after the clean pass alone."""
        if self.checkpoint and self.checkpoint.exists():
            try:
                return _unpack(load_file(self.checkpoint), index, images, labels)
            except (SafetensorError, KeyError, ValueError) as error:
                log.warning("%s: unreadable checkpoint (%s); starting from the beginning", self.checkpoint, error)
        device = next(self.classifier.parameters()).device
        with torch.no_grad():
            logits = torch.cat([self.classifier(images[rows].to(device)).cpu() for rows in torch.arange(len(images)).split(self.batch)])
        clean = logits.argmax(1)
        attack = ["" if right else "clean" for right in (clean == labels).tolist()]
        return Outcomes(
            index, labels, images, clean, images.clone(), cross_entropy_each(logits, labels), attack, clean.clone(), passes=len(images)
        ), 0

    def _save(self, o: Outcomes, finished: int) -> None:
        if self.checkpoint:
            files.write(self.checkpoint, save(_pack(o, finished)))


def _pack(o: Outcomes, finished: int) -> dict[str, Tensor]:
    about = {"attack": o.attack, "after": o.after, "curve": o.curve, "under": o.under, "passes": o.passes, "finished": finished}
    tensors = {"clean": o.clean, "points": o.points, "loss": o.loss, "adversarial": o.adversarial}
    tensors |= {"about": torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)}
    return tensors | ({} if o.masked is None else {"masked": o.masked})


def _unpack(tensors: dict[str, Tensor], index: Labels, images: Images, labels: Labels) -> tuple[Outcomes, int]:
    about = json.loads(bytes(tensors["about"].tolist()))
    curve = [(eps, robust) for eps, robust in about["curve"]]
    outcomes = Outcomes(
        index, labels, images, tensors["clean"], tensors["points"], tensors["loss"], about["attack"], tensors["adversarial"],
        tensors.get("masked"), about["after"], curve, about["under"], about["passes"],
    )  # fmt: skip
    return outcomes, about["finished"]


def write(folder: Path, o: Outcomes, threat: ThreatModel, about: dict[str, Any]) -> dict[str, Any]:
    """outcomes.csv, adversarial.safetensors and summary.json, from which every table can be made without a model."""
    folder.mkdir(parents=True, exist_ok=True)
    distance = threat.distance(o.points, o.images)
    with (folder / "outcomes.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(FIELDS)
        for i, held in enumerate(o.robust.tolist()):
            masked = "" if o.masked is None else int(o.masked[i])
            row = (o.index[i], o.labels[i], o.clean[i], o.adversarial[i])
            rows.writerow([*map(int, row), int(held), o.attack[i], f"{distance[i]:.6f}", f"{o.loss[i]:.6f}", masked])
    files.write(folder / "adversarial.safetensors", save({"images": o.points.contiguous(), "clean": o.images.contiguous()}))
    summary = about | measures(o) | {"threat": threat.model_dump()}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def measures(o: Outcomes) -> dict[str, Any]:
    """The numbers of a suite; accuracies are shares in [0, 1]."""
    n, held = len(o), int(o.robust.sum())
    numbers: dict[str, Any] = {
        "n": n, "clean": int((o.clean == o.labels).sum()) / n, "robust": held / n, "interval": wilson(held, n),
        "attacks": o.after, "masked": None, "curve": None, "passes": o.passes,
    }  # fmt: skip
    if o.masked is not None:
        k = int(o.masked.sum())
        numbers["masked"] = {"attack": o.under["masked"], "robust": k / n, "interval": wilson(k, n)}
    if o.curve:
        numbers["curve"] = {"attack": o.under["curve"], "points": o.curve}
    return numbers
