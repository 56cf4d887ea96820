"""WNLL: an interpolating output layer on stored training images, the weighted nonlocal Laplacian (Wang et al., arXiv 1809.08516).

No weights of its own decide: a prediction is a weighted mean of the labels of near template images. It stores training images' features,
its exact gradient vanishes wherever all neighbours agree, and with `transductive` an image's logits depend on its batch.

    y(x) = relu(B z + b)                 the buffer layer, on the backbone's features z
    w(x, y) = exp(-|x - y|^2 / sigma(x)^2) for the k nearest neighbours y of x, else 0; sigma(x) is the distance of the rank-th

For each class, with g = 1 on the template images of that class and 0 on the others, X all points, T the template, gamma = |X| / |T|:

    sum_{y in X} (w(x, y) + w(y, x)) (u(x) - u(y)) + (gamma - 1) sum_{y in T} w(y, x) (u(x) - u(y)) = 0 off T,    u = g on T

Reported is each image alone, X = T and it, where the system is one equation:

    u(x) = sum_{y in T} c(x, y) g(y) / sum_{y in T} c(x, y),    c(x, y) = w(x, y) + gamma w(y, x),    gamma = 1 + 1 / |T|
    logits = log((1 - f) u + f / classes)                           f = 1e-4 keeps them finite: u is often 0

All of it is differentiated, sigma included. Other gradients: `surrogate`, that of a linear layer on y (the paper's), and `soft`, that of
the mean over all of T with a width of the size of the mean distance. Training alternates: buffer and linear
layer, then the buffer through u.
"""

from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pipeline.classifier import Classifier
from pipeline.data import Positions, Split
from pipeline.errors import Mistake
from pipeline.optimise import Phase, Schedule
from pipeline.randomness import drawing, generator
from pipeline.substitutes import Substitutable
from pipeline.types import Features, Images, Labels, Logits, Losses, NetworkLoss, Settings

FLOOR = 1e-4  # f: the share of the uniform distribution in the probabilities
ISOLATED = 1e-6  # conductance to the mean label, so that a cluster that no template image is near to has a solution
SOFT = 0.1  # the squared width of `soft`, as a share of the mean squared distance
TINY = 1e-12  # the least sigma^2: rank template images on the same spot
BATCH = 1024  # images a pass where the template is computed
Neighbours = tuple[Tensor, Tensor]


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


# The interpolation ------------------------------------------------------------------------------------------------------------------------


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """[..., d], [..., d] -> [...], point by point."""
    return (a - b).square().sum(-1)


def weights(d2: Tensor, sigma2: Tensor) -> Tensor:
    """exp(-d^2 / sigma^2)."""
    return (-d2 / sigma2.clamp_min(TINY)).exp()


@torch.no_grad()
def neighbours(x: Tensor, k: int) -> Neighbours:
    """Distances and numbers [n, k] of the k nearest other points of x [n, d], rising; infinite where there are only k points."""
    distances, index = torch.cdist(x, x).fill_diagonal_(torch.inf).topk(k, largest=False)
    return distances, index


def alone(x: Tensor, t: Tensor, g: Tensor, rank: int, within: Neighbours) -> Tensor:
    """u [n, classes] of each point of x [n, d] alone beside the template t [M, d] with labels g [M, classes] and `neighbours` of its own.

    Beside x, a template image y keeps its neighbours but for the k-th if x is nearer, and x may take the place of its rank-th.
    """
    own, near = within
    with torch.no_grad():  # who is whose neighbour is constant between two jumps
        distances = torch.cdist(x, t)
        to = distances.topk(own.shape[1], largest=False).indices
        i, j = (distances < own[:, -1]).nonzero(as_tuple=True)
    d2 = squared_distances(x[:, None], t[to])
    c = (weights(d2, d2[:, rank - 1, None])[..., None] * g[to]).sum(1)
    d2 = squared_distances(x[i], t[j])
    at = squared_distances(t, t[near[:, rank - 1]]).masked_fill(own[:, rank - 1].isinf(), torch.inf)
    before = squared_distances(t, t[near[:, rank - 2]]) if rank > 1 else torch.zeros_like(at)
    back = weights(d2, d2.clamp(before[j], at[j]))
    c = c.index_add(0, i, (1 + 1 / len(t)) * back[:, None] * g[j])
    return c / c.sum(1, keepdim=True)


def graph(x: Tensor, k: int, rank: int) -> Tensor:
    """[N, d] -> [N, N]: w(x, y), from row to column."""
    to = neighbours(x, k)[1]
    d2 = squared_distances(x[:, None], x[to])
    return x.new_zeros(len(x), len(x)).scatter(1, to, weights(d2, d2[:, rank - 1, None]))


def harmonic(w: Tensor, g: Tensor) -> Tensor:
    """u [N - M, classes] off the template, the first M points of the graph w [N, N], whose labels g [M, classes] are given."""
    N, M = len(w), len(g)
    to = w[M:, :M] + N / M * w[:M, M:].T
    among = w[M:, M:] + w[M:, M:].T
    L = torch.diag(to.sum(1) + among.sum(1) + ISOLATED) - among
    return torch.linalg.solve(L, to @ g + ISOLATED * g.mean(0))


def dense(x: Tensor, t: Tensor, g: Tensor) -> Tensor:
    """What `soft` differentiates: every template image weighs, none so little that the gradient vanishes."""
    d2 = x.square().sum(1)[:, None] + t.square().sum(1) - 2 * x @ t.T
    return (-d2 / (SOFT * d2.mean(1, keepdim=True)).clamp_min(TINY)).softmax(1) @ g


def log_probabilities(u: Tensor) -> Tensor:
    """log((1 - f) u + f / classes)."""
    return ((1 - FLOOR) * u + FLOOR / u.shape[1]).log()


# The head ---------------------------------------------------------------------------------------------------------------------------------


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
            u = (
                harmonic(graph(torch.cat([t, x]), self.k, self.rank), g)
                if self.batch_dependent
                else alone(x, t, g, self.rank, self.within(t))
            )
            logits = log_probabilities(u).to(z.dtype)
        if self.gradient == "exact":
            return logits
        path = self.linear(y) if self.gradient == "surrogate" else log_probabilities(dense(x, t, g)).to(z.dtype)
        return logits + (path - path.detach())  # the value is that of logits to the last bit

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
                "template, or give this model the `augmentation` that its head was trained with."
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
