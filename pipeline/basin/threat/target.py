"""What an attack is given, and what attacks share: the gradient at an image, losses by image, the best point so far."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from basin.errors import THEIRS, short_of_memory
from basin.threat.ball import ThreatModel
from basin.types import Images, Labels, Network, PerImage

CANDIDATES = 100  # target classes among which the nearest are looked for, likeliest first (MALT)
EVERY = {"cpu": 1, "cuda": 10}  # steps between two questions of which images have fallen, whose answer a GPU is waited for


@dataclass(frozen=True)
class Target:
    """What an attack is given: the network, the ball, and where there are any the undefended twin and the backbone's features.

    `single` is one draw of a network that draws, which is what its robust accuracy is about; the network itself may average several.
    `judge` is the reported function, where the network is a quicker one that comes close to it: it alone says what is broken.
    `room` says how many images may be passed at once; where fewer hold, several runs of an attack go abreast.
    """

    network: Network
    threat: ThreatModel
    twin: Network | None = None
    features: Callable[[Images], Tensor] | None = None  # images -> [n, ...]
    single: Network | None = None
    judge: Network | None = None
    room: int = 0

    def abreast(self, images: int) -> int:
        """How many runs on so many images there is room for, at least one."""
        return max(1, self.room // images)

    def incumbent(self, clean: Images) -> "Incumbent":
        return Incumbent(clean, self.judge)


PerImageLoss = Callable[[Tensor, Labels], PerImage]
Step = tuple[Callable[[Tensor], PerImageLoss], float]  # what rises of these images, and the step's length as a share of the radius
Run = tuple[Images, Iterable[Step]]  # a start for each image, and the steps from there


def cross_entropy_each(logits: Tensor, labels: Labels) -> PerImage:
    """CE(z_i, y_i) of each image."""
    return cross_entropy(logits, labels, reduction="none")


def misread(z: Tensor, y: Labels) -> Tensor:
    """Of which images the logits [..., n, classes] say another class; what is not finite says none."""
    return (z.argmax(-1) != y) | ~z.isfinite().all(-1)


def margin(z: Tensor, y: Labels) -> PerImage:
    """z_y - max_{i != y} z_i of each image, below 0 where it is misclassified."""
    return z.gather(1, y[:, None])[:, 0] - z.scatter(1, y[:, None], -torch.inf).amax(1)


def probability_margin(z: Tensor, y: Labels) -> PerImage:
    """p_y - max_{i != y} p_i of each image, p = softmax z; it saturates where the logits are large."""
    return margin(z.softmax(1), y)


def margin_targeted(z: Tensor, y: Labels, t: Labels) -> PerImage:
    """-(z_y - z_t)."""
    return -(z.gather(1, y[:, None])[:, 0] - z.gather(1, t[:, None])[:, 0])


def others(target: Target, images: Images, labels: Labels, logits: Tensor, nearest: bool) -> Tensor:
    """[n, k]: the classes that each image is not, in the order in which they are tried: likeliest first, or nearest first.

    The nearest (MALT: Melamed et al. 2024, arXiv 2407.02240), of the likeliest CANDIDATES, is that of the smallest
    (z_y - z_t) / ||grad (z_y - z_t)||_q at the image, q the dual norm, which is its distance if the network were linear.
    """
    likeliest = logits.scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :-1]
    if not nearest:
        return likeliest
    return likeliest.gather(1, _distances(target, images, labels, likeliest[:, :CANDIDATES]).argsort(dim=1, stable=True))


def _distances(target: Target, images: Images, labels: Labels, classes: Tensor) -> Tensor:
    """[n, k]: how far each image is from each of these classes, in the norm of the threat, where the network is linear."""
    far = []
    for some in classes.T.split(target.abreast(len(images))):
        n, t = len(some), some.flatten()
        x, y = images.repeat(n, 1, 1, 1), labels.repeat(n)
        g, f, _ = gradient(target.network, x, y, lambda z, y, t=t: margin_targeted(z, y, t))  # type: ignore[misc]
        far.append((-f / target.threat.dual(g)).view(n, -1))
    return torch.cat(far).T.nan_to_num(torch.inf)


def gradient(network: Network, x: Images, labels: Labels, loss: PerImageLoss = cross_entropy_each) -> tuple[Tensor, PerImage, Tensor]:
    """(d loss_i / d x_i, loss_i, logits) at x. A gradient that is not finite counts as zero: there is no direction in it."""
    g, losses, logits = derivative(network, x, labels, loss)
    return torch.nan_to_num(g, 0.0, 0.0, 0.0), losses, logits


def derivative(network: Network, x: Images, labels: Labels, loss: PerImageLoss = cross_entropy_each) -> tuple[Tensor, PerImage, Tensor]:
    """(d loss_i / d x_i, loss_i, logits) at x, as it comes: not finite where it overflows, and NaN where the backward pass raises.

    The adjoint of an ODE that overflows on its way back in time does, which torchdiffeq ends with an AssertionError: for the image whose
    adjoint it is, so that those beside it keep theirs.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = network(x)
        losses = loss(logits, labels)
        try:
            (g,) = torch.autograd.grad(losses.sum(), x)
        except THEIRS as error:
            if short_of_memory(error) or _not_deterministic(error):
                raise
            g = torch.cat([_alone(network, x, labels, loss, i) for i in range(len(x))])
    return g, losses.detach(), logits.detach()


def _alone(network: Network, x: Images, labels: Labels, loss: PerImageLoss, i: int) -> Tensor:
    """The derivative at one image that is passed by itself; the loss may know of all, and gets its logits in every row."""
    one = x[i : i + 1].detach().requires_grad_()
    own = loss(network(one).expand(len(x), -1), labels)[i]
    try:
        return torch.autograd.grad(own, one)[0]
    except THEIRS as error:
        if short_of_memory(error):
            raise
        return torch.full_like(one, torch.nan)


def _not_deterministic(error: BaseException) -> bool:
    """Whether torch refuses a kernel that the stage does not allow: nothing is wrong with the gradient."""
    return "does not have a deterministic implementation" in str(error)


def accumulate(mu: float, v: Tensor, g: Tensor) -> Tensor:
    """mu v + g / mean |g|, image by image (Dong et al. 2018, arXiv 1710.06081, equation 6); with mu = 0 the gradient as it is."""
    if mu == 0:
        return g
    size = g.flatten(1).abs().mean(1).clamp_min(torch.finfo(g.dtype).tiny)
    return mu * v + g / size.view(-1, *[1] * (g.ndim - 1))


class Incumbent:
    """The best point so far for each image: one that is misclassified before one that is not, then the higher loss.

    With a `judge`, misclassified is what it misreads of what the logits offered misread; it is asked about nothing else.
    """

    def __init__(self, clean: Images, judge: Network | None = None):
        self.points, self.judge = clean.clone(), judge
        self.loss = torch.full((len(clean),), -torch.inf, dtype=clean.dtype, device=clean.device)
        self.broken = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)

    def offer(self, x: Images, logits: Tensor, labels: Labels, rows: Tensor | None = None, runs: int = 1) -> None:
        """Take the points of `x` that are better; `rows`, rising, says which images they belong to (by default all), one run after the
        other if there are several."""
        at = slice(None) if rows is None or len(rows) == len(self.points) else rows
        loss = cross_entropy_each(logits, labels).detach()
        broken = misread(logits, labels)
        if self.judge is not None:
            broken = self._judged(x, labels, broken & ~self.broken[at].repeat(runs))
        if runs > 1:
            best = _best(loss, broken, runs)
            x, loss, broken = x[best], loss[best], broken[best]
        was, high, points = self.broken[at], self.loss[at], self.points[at]
        better = (broken & ~was) | ((broken == was) & (loss > high))
        torch.where(better.view(-1, *[1] * (x.ndim - 1)), x.detach(), points, out=points)
        if rows is not None:
            self.points[at] = points
        self.loss[at], self.broken[at] = torch.where(better, loss, high), torch.where(better, broken, was)

    @torch.no_grad()
    def _judged(self, x: Images, labels: Labels, asked: Tensor) -> Tensor:
        """Which of the points the judge misreads; those that are not asked about are not, and so replace none that is."""
        broken, rows = torch.zeros_like(asked), asked.nonzero().flatten()
        if len(rows):
            broken[rows] = misread(self.judge(x[rows]), labels[rows])  # type: ignore[misc]
        return broken


def _best(loss: PerImage, broken: Tensor, runs: int) -> Tensor:
    """Where among the points of several runs the best of each image lies: misread before one that is not, then of the higher loss."""
    high = loss.nan_to_num(torch.finfo(loss.dtype).min).view(runs, -1)
    misread = broken.view(runs, -1)
    run = torch.where(misread.any(0), high.masked_fill(~misread, -torch.inf).argmax(0), high.argmax(0))
    return run * high.shape[1] + torch.arange(high.shape[1], device=loss.device)


def beside(losses: Sequence[PerImageLoss]) -> PerImageLoss:
    """The loss of runs that go abreast, each with its own."""
    if len(losses) == 1:
        return losses[0]
    return lambda z, y: torch.cat([loss(*part) for loss, *part in zip(losses, z.chunk(len(losses)), y.chunk(len(losses)), strict=True)])


def asks(k: int, device: torch.device) -> bool:
    """Whether step k of a search asks which images have fallen."""
    return k % EVERY.get(device.type, EVERY["cuda"]) == 0


def follow(target: Target, runs: Iterable[Run], clean: Images, labels: Labels, best: Incumbent) -> None:
    """Steepest steps of runs of the same lengths on the images that hold. Every point is offered to `best`; what is misread leaves."""
    left = iter(runs)
    while len(rows := (~best.broken).nonzero().flatten()) and (now := list(islice(left, target.abreast(len(rows))))):
        _follow(target, now, rows, clean, labels, best)


def _follow(target: Target, runs: Sequence[Run], rows: Tensor, clean: Images, labels: Labels, best: Incumbent) -> None:
    """These runs abreast."""
    n, x = len(runs), torch.cat([start[rows] for start, _ in runs])
    y, near = labels[rows].repeat(n), clean[rows].repeat(n, *[1] * (clean.ndim - 1))
    for k, steps in enumerate(zip(*(steps for _, steps in runs), strict=True)):
        g, _, logits = gradient(target.network, x, y, beside([loss(rows) for loss, _ in steps]))
        best.offer(x, logits, y, rows, n)
        if asks(k, x.device):
            holds = ~best.broken[rows]
            if not len(kept := holds.nonzero().flatten()):
                return
            each = torch.cat([kept + run * len(holds) for run in range(n)])
            rows, x, g, y, near = rows[kept], x[each], g[each], y[each], near[each]
        x = target.threat.project(target.threat.ascend(x, g, steps[0][1]), near)
    with torch.no_grad():
        best.offer(x, target.network(x), y, rows, n)


def cooled(loss: PerImageLoss, steps: int, first: float) -> Iterator[Step]:
    """eta_k = first (1 + cos(pi k / K)) / 2, k = 0 .. K - 1."""
    return ((lambda rows: loss, first * (1 + math.cos(math.pi * k / steps)) / 2) for k in range(steps))
