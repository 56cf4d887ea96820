"""What became of each image under a suite of attacks, and the files it is kept in, from which every table can be made without a model."""

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from basin import checkpoint, files
from basin.errors import Mistake
from basin.evaluation import classes
from basin.evaluation.interval import wilson
from basin.threat.ball import ThreatModel
from basin.threat.target import cross_entropy_each
from basin.types import Images, Labels, Logits, PerImage

FORMAT = 1  # of the three files of a folder; summary.json says it
FIELDS = ("image", "label", "clean", "adversarial", "robust", "attack", "distance", "loss", "masked", "certified")
TENSORS = ("clean", "clean_share", "points", "loss", "adversarial", "share", "masked", "ensemble")


@dataclass
class Outcomes:
    """One row an image. `share` is the share of draws in which it is read rightly at its stored point: 0 or 1 where nothing is random.

    `points` are the worst found: of lowest share, then of highest loss. `attack` is the first that brought the share below one half,
    "clean" where none was needed and "" where none did.
    """

    index: Labels
    labels: Labels
    images: Images
    clean: Labels  # prediction
    clean_share: PerImage
    points: Images
    loss: PerImage
    attack: list[str]
    adversarial: Labels
    share: PerImage
    masked: PerImage | None = None  # the share under the naive gradient alone
    radius: PerImage | None = None  # the L2 radius within which no attack can succeed (certificate.py)
    ensemble: Tensor | None = None  # [n, 2]: shares of ensembles that read the clean image and the stored point rightly
    after: dict[str, float] = field(default_factory=dict)  # attack -> robust accuracy after it
    curve: list[tuple[float, float]] = field(default_factory=list)
    under: dict[str, str] = field(default_factory=dict)  # "masked", "curve" -> the attack behind it, in words
    spared: dict[str, tuple[int, int]] = field(default_factory=dict)  # attack that has to earn its images -> those it was given, and not
    passes: int = 0  # of images through the model itself; those through its twin, and of probes, are not among them

    @classmethod
    def untouched(cls, index: Labels, images: Images, labels: Labels, logits: Logits, share: PerImage, passes: int) -> "Outcomes":
        """Before any attack."""
        clean = logits.argmax(1)
        attack = ["" if kept else "clean" for kept in (share >= 0.5).tolist()]
        loss = cross_entropy_each(logits, labels)
        return cls(index, labels, images, clean, share.clone(), images.clone(), loss, attack, clean.clone(), share, passes=passes)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def alive(self) -> Tensor:
        """Rows that an attack can still take something from."""
        return (self.share > 0).nonzero().flatten()

    @property
    def robust(self) -> float:
        """Robust accuracy so far: expected over draws where something is random."""
        return mean(self.share)

    @property
    def closest(self) -> Tensor:
        """Rows that an attack can still take something from, closest to falling first: of the lowest share, then of the highest loss."""
        rows = self.alive
        rows = rows[self.loss[rows].argsort(descending=True, stable=True)]
        return rows[self.share[rows].argsort(stable=True)]

    @property
    def last_taken(self) -> float:
        """What the last attack took from the robust accuracy."""
        return self.taken(next(reversed(self.after)))

    def taken(self, name: str) -> float:
        """What an attack took from the robust accuracy; 0 where it did not run."""
        robust = [mean(self.clean_share), *self.after.values()]
        return next((before - after for one, before, after in zip(self.after, robust, robust[1:]) if one == name), 0.0)

    def spares(self, name: str) -> bool:
        """Whether an attack left out images that it had not earned."""
        return self.spared.get(name, (0, 0))[1] > 0

    def record(self, name: str, rows: Tensor, x: Images, logits: Logits, share: PerImage) -> None:
        """Take the candidates that are worse than the stored points."""
        loss = cross_entropy_each(logits, self.labels[rows])
        worse = (share < self.share[rows]) | ((share == self.share[rows]) & (loss > self.loss[rows]))
        taken = rows[worse]
        self.points[taken], self.loss[taken], self.share[taken] = x[worse], loss[worse], share[worse]
        self.adversarial[taken] = logits.argmax(1)[worse]
        for row in rows[share < 0.5].tolist():
            self.attack[row] = self.attack[row] or name


def mean(shares: Tensor) -> float:
    return float(shares.double().sum()) / len(shares)


def pack(o: Outcomes, finished: int, planned: int, of: str = "") -> bytes:
    """A checkpoint after `finished` of `planned` steps; `of` says of what evaluation."""
    about = {"attack": o.attack, "after": o.after, "curve": o.curve, "under": o.under, "spared": o.spared, "passes": o.passes}
    about |= {"finished": finished, "planned": planned, "of": of}
    tensors = {name: value.contiguous() for name in TENSORS if (value := getattr(o, name)) is not None}
    return checkpoint.sealed(tensors, {"about": json.dumps(about)})


def unpack(path: Path, index: Labels, images: Images, labels: Labels, of: str = "") -> tuple[Outcomes, int]:
    """The outcomes of a checkpoint, and how many steps they are after. Raises one of `checkpoint.UNREADABLE` where it is damaged, Mistake
    where it is of another evaluation."""
    stored, texts = checkpoint.opened(path)
    tensors: dict[str, Any] = stored
    about: dict[str, Any] = json.loads(texts["about"])
    finished, _ = about.pop("finished"), about.pop("planned")
    if about.pop("of") != of:
        raise Mistake(f"{path}: is the checkpoint of another model, images, threat, suite or seed. Delete it, or give another file.")
    about["spared"] = {name: (given, spared) for name, (given, spared) in about["spared"].items()}
    about["curve"] = [(eps, robust) for eps, robust in about["curve"]]
    return Outcomes(index=index, images=images, labels=labels, **tensors, **about), finished


def write(folder: Path, o: Outcomes, threat: ThreatModel, about: dict[str, Any]) -> dict[str, Any]:
    """outcomes.csv, adversarial.safetensors and summary.json."""
    distance = threat.distance(o.points, o.images)
    rows = csv.writer(text := io.StringIO(), lineterminator="\n")
    rows.writerow(FIELDS)
    for i, share in enumerate(o.share.tolist()):
        masked = "" if o.masked is None else f"{o.masked[i]:.4g}"
        certified = "" if o.radius is None else f"{o.radius[i]:.6g}"
        row = (o.index[i], o.labels[i], o.clean[i], o.adversarial[i])
        rows.writerow([*map(int, row), f"{share:.4g}", o.attack[i], f"{distance[i]:.6f}", f"{o.loss[i]:.6f}", masked, certified])
    files.write(folder / "outcomes.csv", text.getvalue())
    files.write(folder / "adversarial.safetensors", save({"images": o.points.contiguous(), "clean": o.images.contiguous()}))
    summary = {"format": FORMAT, "basin": files.VERSION} | about | measures(o) | {"threat": threat.model_dump()}
    files.write(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def measures(o: Outcomes) -> dict[str, Any]:
    """The numbers of a suite; accuracies are shares in [0, 1]. `by_class`: class -> images, clean accuracy, robust accuracy."""
    read = [one.cpu().numpy() for one in (o.labels, o.clean_share, o.share)]
    numbers: dict[str, Any] = {
        "n": len(o), "clean": mean(o.clean_share), "robust": o.robust, "interval": interval(o.share),
        **classes.balance(*read), "uneven": classes.is_uneven(read[0]), "by_class": classes.by_class(*read),
        "attacks": o.after, "spared": o.spared, "masked": None, "curve": None, "ensemble": None, "passes": o.passes,
    }  # fmt: skip
    if o.masked is not None:
        numbers["masked"] = {"attack": o.under["masked"], "robust": mean(o.masked), "interval": interval(o.masked)}
    if o.ensemble is not None:
        clean, robust = o.ensemble.unbind(1)
        numbers["ensemble"] = {"clean": mean(clean), "robust": mean(robust), "interval": interval(robust)}
    if o.curve:
        numbers["curve"] = {"attack": o.under["curve"], "points": o.curve}
    return numbers


def interval(shares: Tensor) -> tuple[float, float]:
    return wilson(float(shares.double().sum()), len(shares))
