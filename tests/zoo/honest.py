"""Models that people bring and that hide nothing. Each has its true gradient, so no flag is due.

The worst case of the linear ones is known in closed form. That of the others is bounded from above by a search made here, which shares
nothing with Basin's attacks: signed steps on the difference of two logits, towards every class, from many starts.
"""

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from basin.randomness import construct
from zoo.species import EPS, INSIDE, Animal, Linear, N, images, linear_truth

SAMPLES, EPOCHS = 800, 150
STEPS, STARTS, NEAREST = 200, 10, 9
OTHERS = [0.6, 0.2, 0.1, 0.06, 0.04]  # shares of uneven classes


# Images -----------------------------------------------------------------------------------------------------------------------------------


@cache
def blobs(classes: int = 5, side: int = 6, contrast: float = 0.04, shares: tuple[float, ...] = ()) -> tuple[Tensor, Tensor]:
    """[n, 1, side, side] and labels: each class a faint pattern of its own under noise; the first N are judged, the others fitted."""
    draw = torch.Generator().manual_seed(classes + side)
    patterns = torch.randn((classes, 1, side, side), generator=draw)
    counts = torch.tensor(shares or [1.0] * classes)
    first = torch.multinomial(counts, N, True, generator=draw)
    if shares:  # of the smallest class too, some are judged
        first = torch.arange(classes).repeat_interleave((N * counts).round().long())
    y = torch.cat([first, torch.multinomial(counts, max(SAMPLES, 10 * classes), True, generator=draw)])
    x = 0.5 + contrast * patterns[y] + 0.06 * torch.randn((len(y), 1, side, side), generator=draw)
    return x.clamp(0, 1), y


def judged_images(**kind) -> tuple[Tensor, Tensor]:
    x, y = blobs(**kind)
    return x[:N], y[:N]


def far_images() -> tuple[Tensor, Tensor]:
    """Those of many that lie furthest from a boundary of WIDE."""
    x = images(4000, seed=5)
    y = WIDE(x).argmax(1)
    rows = WIDE.distances(x, y).argsort(descending=True)[:N]
    return x[rows], y[rows]


# Models -----------------------------------------------------------------------------------------------------------------------------------


WIDE = Linear(seed=3)
WIDE.requires_grad_(False)


class Centred(nn.Module):
    """Pixels brought to unit size, and in rows where `flat`."""

    def __init__(self, flat: bool = True):
        super().__init__()
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        z = (x - 0.5) / 0.1
        return z.flatten(1) if self.flat else z


def mlp(*widths: int, between: Callable[[], nn.Module] = nn.ReLU, drop: float = 0.0) -> nn.Sequential:
    layers: list[nn.Module] = [Centred()]
    for i, (fan_in, fan_out) in enumerate(zip(widths, widths[1:])):
        layers += [between(), nn.Dropout(drop)] if i else []
        layers.append(nn.Linear(fan_in, fan_out))
    return nn.Sequential(*layers)


def batch_normed() -> nn.Module:
    convolution = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)]
    return nn.Sequential(Centred(flat=False), *convolution, nn.ReLU(), nn.Flatten(), nn.Linear(72, 5))


def pooled() -> nn.Module:
    layers = [nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()]
    return nn.Sequential(Centred(flat=False), *layers, nn.Flatten(), nn.Linear(108, 5))


class Transformer(nn.Module):
    """Patches of 2 x 2, their places, one block of attention and GELU with layer norms before, the mean of the tokens."""

    def __init__(self, width: int = 16, classes: int = 5):
        super().__init__()
        self.centred, self.patches = Centred(flat=False), nn.Conv2d(1, width, 2, stride=2)
        self.places = nn.Parameter(0.1 * torch.randn(9, width))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        t = self.patches(self.centred(x)).flatten(2).mT + self.places
        n = self.norms[0](t)
        t = t + self.attention(n, n, n, need_weights=False)[0]
        t = t + self.mlp(self.norms[1](t))
        return self.head(self.norms[2](t).mean(1))


class Quantised(nn.Linear):
    """Weights of 15 values; their gradient goes straight through the rounding."""

    def forward(self, x: Tensor) -> Tensor:
        step = self.weight.abs().max().detach() / 7
        rounded = (self.weight / step).round() * step
        return nn.functional.linear(x, self.weight + (rounded - self.weight).detach(), self.bias)


class Ensemble(nn.Module):
    """The logarithm of the members' mean probabilities."""

    def __init__(self, *members: nn.Module):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x).log_softmax(1) for member in self.members]).logsumexp(0)


def fitted(name: str, build: Callable[[], nn.Module], kind: dict) -> nn.Module:
    """Trained on the images that are not judged, with Adam on whole batches; the same at every call."""
    x, y = (one[N:] for one in blobs(**kind))
    with construct(0, "zoo", name), torch.enable_grad():
        model = build().train()
        optimiser = torch.optim.Adam(model.parameters(), 0.01, weight_decay=1e-3)
        for _ in range(EPOCHS):
            optimiser.zero_grad()
            cross_entropy(model(x), y).backward()
            optimiser.step()
    return model.eval().requires_grad_(False)


# The reference ----------------------------------------------------------------------------------------------------------------------------


def search(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Clean accuracy, and robust accuracy under a long search towards every class, or the NEAREST where there are more."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        z = model(x).scatter(1, y[:, None], -torch.inf)
        held = clean = model(x).argmax(1) == y
    for start in range(STARTS):
        for target in z.topk(min(z.shape[1] - 1, NEAREST)).indices.T:
            rows = held.nonzero().flatten()
            x0 = x[rows] + start / STARTS * EPS * (2 * torch.rand(x[rows].shape, generator=draw) - 1) * 1.1
            held = held.index_put((rows,), descend(model, x[rows], x0, y[rows], target[rows]))
    return clean.double().mean().item(), held.double().mean().item()


def descend(model: nn.Module, clean: Tensor, x: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """[n]: which images are read rightly at every point on the way down z_y - z_target, the steps shrinking from 2 EPS to none."""
    low, high, held = (clean - EPS).clamp(0, 1), (clean + EPS).clamp(0, 1), torch.ones_like(y, dtype=torch.bool)
    for step in range(STEPS):
        x = x.clamp(low, high).requires_grad_()
        z = model(x)
        (g,) = torch.autograd.grad((z.gather(1, y[:, None]) - z.gather(1, target[:, None])).sum(), x)
        held &= z.detach().argmax(1) == y
        x = x.detach() - 2 * EPS * (1 - step / STEPS) * g.sign()
    return held


def net(name: str, build: Callable[[], nn.Module], **kind) -> Animal:
    make, data = cache(partial(fitted, name, build, kind)), partial(judged_images, **kind)
    return Animal(name, make, cache(lambda: search(make(), *data())), data=data)


def linear_wide_truth() -> tuple[float, float]:
    x, y = far_images()
    return 1.0, (WIDE.distances(x, y) > EPS).double().mean().item()


ANIMALS = [
    Animal("linear", lambda: INSIDE, linear_truth()),
    Animal("linear with wide margins", lambda: WIDE, linear_wide_truth(), data=far_images),
    net("a tiny net", lambda: mlp(36, 3, 5, between=nn.Tanh)),
    net("a deep net", lambda: mlp(36, *[24] * 7, 5)),
    net("a wide net", lambda: mlp(36, 512, 5)),
    net("two classes", lambda: mlp(36, 24, 2, between=nn.GELU), classes=2),
    net("two hundred classes", lambda: mlp(64, 64, 200), classes=200, side=8, contrast=0.08),
    net("batch norm in evaluation mode", batch_normed),
    net("dropout that is off", lambda: mlp(36, 48, 48, 5, drop=0.2)),
    net("a small transformer of patches", Transformer),
    net("quantised weights", lambda: nn.Sequential(Centred(), Quantised(36, 24), nn.ReLU(), Quantised(24, 5))),
    net("an ensemble", lambda: Ensemble(mlp(36, 16, 5), mlp(36, 24, 5, between=nn.Tanh), mlp(36, 5))),
    net("log-softmax outputs", lambda: nn.Sequential(mlp(36, 24, 5), nn.LogSoftmax(1))),
    net("uneven classes, all known", lambda: mlp(36, 24, 5), shares=tuple(OTHERS), contrast=0.06),
    net("max-pooling", pooled),
]
