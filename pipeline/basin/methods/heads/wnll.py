"""WNLL, an interpolating output layer: the labels of stored training images, averaged (Wang et al., arXiv 1809.08516).

A prediction is a weighted mean of the labels of near template images in place of a linear layer's. It stores training images' features,
its exact gradient vanishes wherever all neighbours agree, and with `transductive` an image's logits depend on its batch.

    y(x) = relu(B z + b)                          the buffer layer, on the backbone's features z
    u(x) = the weighted nonlocal Laplacian's interpolation of the template's labels at y(x)           (basin/models/interpolation.py)
    logits = log((1 - f) u + f / classes)         f = 1e-4 keeps them finite: u is often 0

Reported is each image alone beside the template. Gradients: `exact`; `surrogate`, of a linear layer on y (the paper's); `soft`, of a mean
over the whole template. Training alternates: buffer and linear layer by cross-entropy, then the buffer through u.
"""

from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torch.nn.functional import one_hot

from basin.config.schedule import Schedule
from basin.config.settings import Settings
from basin.data.splits import Positions, Split
from basin.errors import Mistake
from basin.models.classifier import Classifier
from basin.models.interpolation import Neighbours, alone, dense, graph, harmonic, neighbours
from basin.models.substitutes import Substitutable
from basin.randomness import drawing, generator
from basin.training.phase import Phase
from basin.types import Features, Images, Labels, Logits, Losses, NetworkLoss

FLOOR = 1e-4  # f: the share of the uniform distribution in the probabilities
BATCH = 1024  # images a pass where the template is computed


class Params(Settings):
    width: int = Field(64, ge=1, description="the positive width of the buffer layer (released: 64)")
    k: int = Field(15, ge=1, description="the positive number of neighbours of a point (released: 15, 30, 45, 60)")
    rank: int = Field(
        8, ge=1, validate_default=True, description="which neighbour's distance is sigma, from 1 to k (released: 8, 15, 23, 30)"
    )
    template: int = Field(
        1000, ge=1, validate_default=True, description="how many training images are kept, k or more (released: 500 to 2,000)"
    )
    gradient: Literal["exact", "surrogate", "soft"] = Field(
        "exact", description="the gradient in training: exact, surrogate (of the linear layer, the paper's) or soft"
    )
    transductive: bool = Field(
        False, description="whether the images of a batch are neighbours of one another (the paper's mode): logits then depend on the batch"
    )

    @field_validator("rank", "template")
    @classmethod
    def _fits_k(cls, value: int, info: Any) -> int:
        k = info.data.get("k", value)
        if info.field_name == "rank" and value > k:
            raise PydanticCustomError("rank", f"larger than k. Give 1 to {k}.")  # type: ignore[arg-type]
        if info.field_name == "template" and value < k:
            raise PydanticCustomError("template", f"a template smaller than k. Give {k} or more.")  # type: ignore[arg-type]
        return value


class Interpolation(Schedule):
    """The second phase, and how often the two alternate."""

    known: float = Field(0.8, gt=0, lt=1, description="the share of each batch whose labels are given, above 0 and below 1 (released: 0.8)")
    loops: int = Field(1, ge=1, description="a positive number of times that both phases are run, in turn (released: 2)")


class Schedules(Settings):
    linear: Schedule = Field(description="phase 1: the buffer and the linear layer")
    interpolation: Interpolation = Field(description="phase 2: the buffer, through the interpolation")


# The head ---------------------------------------------------------------------------------------------------------------------------------


def log_probabilities(u: Tensor) -> Tensor:
    """log((1 - f) u + f / classes)."""
    return ((1 - FLOOR) * u + FLOOR / u.shape[1]).log()


class Head(Substitutable):
    """[n, width] -> [n, classes]: log-probabilities. Raises Mistake where the template is smaller than the number of classes.

    The template is given by `phases`; before that it is the first training images, with drawn features until `refresh` is called.
    """

    gradients = ("exact", "surrogate", "soft")
    features: Tensor
    labels: Tensor
    index: Tensor

    def __init__(self, params: Params, width: int, classes: int):
        super().__init__()
        M = params.template
        if M < classes:
            raise Mistake(f"head.template: smaller than the number of classes (got {M}). Give {classes} or more.")
        self.k, self.rank, self.classes, self.gradient = params.k, params.rank, classes, params.gradient
        self.batch_dependent = params.transductive
        self.kept: tuple[Tensor, Neighbours] | None = None
        self.buffer = nn.Sequential(nn.Linear(width, params.width), nn.ReLU())
        self.linear = nn.Linear(params.width, classes)
        self.register_buffer("features", torch.randn(M, width))
        self.register_buffer("labels", torch.arange(M) % classes)
        self.register_buffer("index", torch.arange(M))

    def forward(self, z: Features) -> Logits:
        return self.interpolate(z, self.features, self.labels)

    def linearly(self, z: Features) -> Logits:
        """The linear layer that is trained first, and whose gradient is the surrogate."""
        return self.linear(self.buffer(z))

    def interpolate(self, z: Features, known: Tensor, labels: Tensor) -> Logits:
        """Logits at z from the features `known` [M, width] and labels [M] of a template."""
        y, g = self.buffer(z), one_hot(labels, self.classes).double()
        x, t = y.double(), self.buffer(known).double()  # far from the origin, distances are differences of large numbers
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.gradient == "exact"):
            logits = log_probabilities(self.u(x, t, g)).to(z.dtype)
        if self.gradient == "exact":
            return logits
        path = self.linear(y) if self.gradient == "surrogate" else log_probabilities(dense(x, t, g)).to(z.dtype)
        return logits + (path - path.detach())  # the value is that of logits to the last bit

    def u(self, x: Tensor, t: Tensor, g: Tensor) -> Tensor:
        """[n, classes] at x, beside the template t with labels g."""
        if self.batch_dependent:
            return harmonic(graph(torch.cat([t, x]), self.k, self.rank), g)
        return alone(x, t, g, self.rank, self.within(t))

    def within(self, t: Tensor) -> Neighbours:
        """The template's neighbours, kept while it stays where it is: through an attack, and from image to image."""
        if self.kept is None or self.kept[0].device != t.device or not torch.equal(self.kept[0], t):
            with torch.inference_mode(False):  # or nothing could be differentiated through them later
                self.kept = t.detach().clone(), neighbours(t, self.k)
        return self.kept[1]

    @torch.no_grad()
    def refresh(self, model: Any, train: Split) -> None:
        """Compute the template again with the backbone as it is now. Raises Mistake where it is not of these training images."""
        if (last := int(self.index.max())) >= len(train):
            raise Mistake(
                f"head.template: holds more images, or others, than there are to train on (got image {last} of {len(train)}). Lower "
                "template, or give this model the `cleaned` that its head was trained with."
            )
        model.eval()
        device, rows = self.features.device, self.index.cpu()
        with drawing(model, generator(0, "template", device=device)):
            self.features = torch.cat([model.features(train.floats(part).to(device)) for part in rows.split(BATCH)])
        self.labels = train.labels[rows].to(device)


# Training ---------------------------------------------------------------------------------------------------------------------------------


def choose(labels: Labels, n: int, draw: torch.Generator) -> Positions:
    """Positions of n images, rising, as many of each class as there are."""
    order = torch.randperm(len(labels), generator=draw)
    count = one_hot(labels[order]).cumsum(0).gather(1, labels[order, None])[:, 0]  # how many of its class have come
    return order[count.argsort(stable=True)[:n]].sort().values


def phases(schedules: Schedules, classifier: Classifier, loss: NetworkLoss, train: Split) -> list[Phase]:
    """Choose the template, then alternate. The interpolation is trained on part of each batch, from the labels of the rest."""
    head: Head = classifier.head  # type: ignore[assignment]
    recipe, share = classifier.recipe, schedules.interpolation.known
    if len(train) < len(head.index):
        raise Mistake(f"head.template: larger than the training split (got {len(head.index)}). Give {len(train)} or less.")
    if int(share * schedules.interpolation.batch) < head.k:
        raise Mistake(
            f"schedule.interpolation.batch: its known share has fewer images than the k = {head.k} neighbours of a point "
            f"(got {schedules.interpolation.batch}). Raise it, or lower head.k."
        )
    head.index.copy_(choose(train.labels, len(head.index), generator(recipe.get("seed", 0), recipe["model"], "template")))
    head.refresh(classifier, train)

    def linear(x: Images, y: Labels, g: torch.Generator) -> Losses:
        return loss(lambda images: head.linearly(classifier.features(images)), x, y, g)

    def interpolation(x: Images, y: Labels, g: torch.Generator) -> Losses:
        rows = torch.randperm(len(x), generator=g, device=g.device)
        known, unknown = rows[: int(share * len(x))], rows[int(share * len(x)) :]
        if len(known) < head.k:  # a last, short batch
            return loss(classifier, x, y, g)
        z = classifier.features(x[known])
        return loss(lambda images: head.interpolate(classifier.features(images), z, y[known]), x[unknown], y[unknown], g)

    plan = [
        Phase("linear", schedules.linear, [head.buffer, head.linear], linear),
        Phase("interpolation", schedules.interpolation, [head.buffer], interpolation),
    ]
    return [
        Phase(phase.name + f" {loop}" * (loop > 1), phase.schedule, phase.trained, phase.loss)
        for loop in range(1, schedules.interpolation.loops + 1)
        for phase in plan
    ]
