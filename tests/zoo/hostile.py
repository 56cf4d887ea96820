"""Models that mislead whoever judges them: gradients masked in every way, odd types, states, modes and answers.

Each computes INSIDE or a function whose worst case is known in closed form or by going through all cases; or it is one to refuse.
"""

import itertools
import sys
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from zoo.species import EPS, INSIDE, PIXELS, Animal, Linear, Made, N, X, Y, drawn, linear_truth, phi

BLIND, GONE = "its gradient is blind", "no gradient"
SAME = linear_truth()


# Quantised: the worst case of sum_i w_i q(x_i) is taken pixel by pixel -------------------------------------------------------------------


def quantised_truth(levels: int) -> tuple[float, float]:
    """Of INSIDE on pixels rounded to `levels` steps: each difference of logits has its own worst value of every pixel."""
    x, rows = X.flatten(1), torch.arange(N)
    grid = torch.arange(-1, levels + 2) / levels
    reach = ((grid - x[..., None]).abs() <= EPS + 0.5 / levels - 1e-9) & (grid >= 0) & (grid <= 1)  # [n, d, grid]
    w = INSIDE.W[Y][:, None] - INSIDE.W[None]  # [n, classes, d]
    lowest = (w[..., None] * grid).masked_fill(~reach[:, None], torch.inf).amin(3).sum(2) + (INSIDE.b[Y][:, None] - INSIDE.b)
    lowest[rows, Y] = torch.inf
    clean = INSIDE((X * levels).round() / levels).argmax(1) == Y
    return clean.double().mean().item(), ((lowest.amin(1) > 0) & clean).double().mean().item()


def rounded(levels: int, how=torch.round):
    return lambda: Made(lambda z, x: z((how(x * levels)) / levels))


# Random: shares in closed form ----------------------------------------------------------------------------------------------------------


TWO = Linear(classes=2, seed=2)
TWO.requires_grad_(False)
Y2 = TWO(X).argmax(1)
W2 = TWO.W[0] - TWO.W[1]
SIGN = 1 - 2.0 * Y2  # +1 where class 0 is right


def two() -> tuple[Tensor, Tensor]:
    return X, Y2


def margin2(x: Tensor) -> Tensor:
    z = TWO(x)
    return SIGN * (z[:, 0] - z[:, 1])


SPREAD = 0.5


class Noisy(nn.Module):
    """Normal noise on the difference of two logits, from torch's global generator."""

    def __init__(self):
        super().__init__()
        self.z = TWO

    def forward(self, x: Tensor) -> Tensor:
        return self.z(x) + SPREAD * torch.randn(len(x), 1) * torch.tensor([1.0, 0.0])


def noisy_truth() -> tuple[float, float]:
    m = margin2(X)
    return phi(m / SPREAD).mean().item(), phi((m - EPS * W2.abs().sum()) / SPREAD).mean().item()


class McDropout(nn.Module):
    """Dropout on the pixels, kept in training mode on purpose; `own` in an eval() of its own."""

    def __init__(self, own: bool):
        super().__init__()
        self.z, self.drop, self.own = TWO, nn.Dropout(0.5), own

    def eval(self):
        super().eval()
        if self.own:
            self.drop.train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.z(self.drop(x - 0.5) + 0.5)


def kept(own: bool) -> nn.Module:
    model = McDropout(own).eval()
    model.drop.train()
    return model


def dropout_truth() -> tuple[float, float]:
    """Through all 2^16 masks: under each, the worst pixels are the same."""
    masks = torch.tensor(list(itertools.product((0.0, 2.0), repeat=PIXELS)))
    centred, w = X.flatten(1) - 0.5, SIGN[:, None] * W2
    clean = torch.stack([((masks * (row * ws)).sum(1) > 0).double().mean() for row, ws in zip(centred, w)])
    worst = torch.stack([((masks * (row * ws - EPS * ws.abs())).sum(1) > 0).double().mean() for row, ws in zip(centred, w)])
    return clean.mean().item(), worst.mean().item()


# Odd answers, types, states ---------------------------------------------------------------------------------------------------------------


class Raises(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z.clone()

    @staticmethod
    def backward(ctx, g):
        raise RuntimeError("no backward pass here")


class Lies(torch.autograd.Function):
    """A gradient drawn from anywhere."""

    @staticmethod
    def forward(ctx, z):
        return z.clone()

    @staticmethod
    def backward(ctx, g):
        return drawn(*g.shape, seed=7)


def in_numpy(z, x):
    return torch.from_numpy(np.asarray(x.detach().numpy().reshape(len(x), -1) @ z.W.numpy().T + z.b.numpy()))


def without_grad(z, x):
    with torch.no_grad():
        return z(x)


def in_inference(z, x):
    with torch.inference_mode():
        return z(x)


def writes(z, x):
    x -= 0.25
    return z(x + 0.25)


def writes_without_gradient(z, x):
    return z(x - 0.1 + 0.1) if x.requires_grad else z(x.sub_(0.1) + 0.1)


def ranks(z, x):
    return z(x).argsort(1).argsort(1)


def one_hot(z, x):
    return torch.nn.functional.one_hot(z(x).argmax(1), 5)


class Counting(nn.Module):
    """Another function after `after` calls."""

    def __init__(self, after: int):
        super().__init__()
        self.z, self.after, self.calls = INSIDE, after, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.z(x) if self.calls <= self.after else -self.z(x)


class Remembering(nn.Module):
    """A buffer that follows the images."""

    def __init__(self):
        super().__init__()
        self.z = INSIDE
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.mean()
        return self.z(x)


def normed_in_training() -> nn.Module:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(PIXELS, 5)).eval()
    model[0].train()
    return model


class Unused(nn.Module):
    """A branch whose weights are not numbers, and which nothing uses."""

    def __init__(self):
        super().__init__()
        self.z, self.other = INSIDE, nn.Linear(2, 2)
        nn.init.constant_(self.other.weight, torch.nan)

    def forward(self, x: Tensor) -> Tensor:
        return self.z(x)


def with_attributes(**attributes: object) -> nn.Module:
    model = Made(lambda z, x: z(x))
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def typed(dtype: torch.dtype) -> nn.Module:
    layer = nn.Linear(PIXELS, 5)
    layer.load_state_dict({"weight": INSIDE.W, "bias": INSIDE.b})
    return nn.Sequential(nn.Flatten(), layer.to(dtype))


def dynamic() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(typed(torch.float32), {nn.Linear}, dtype=torch.qint8)


def lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(5))


def meta() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 5, device="meta"))


def masked(name, forward, flags=(), facts="", truth=SAME, slack=1 / N):
    return Animal(name, lambda: Made(forward), truth, frozenset(flags), facts, slack=slack)


def at_one_class(instead):
    """Of the images that it reads as class 2 alone the gradient is another's."""
    return lambda z, x: torch.where((z(x).argmax(1) == 2)[:, None], instead(z, x), z(x))


def refused(name, make, sentence, as_it_is=False):
    return Animal(name, make, sentence, as_it_is=as_it_is)


VANISHED, WRONG = "vanishing-gradient", "wrong-gradient"
ANIMALS = [
    # the gradient
    masked("gradient reversed", lambda z, x: z(2 * x.detach() - x), {WRONG}, BLIND),
    masked("gradient drawn from anywhere", lambda z, x: Lies.apply(z(x)), {WRONG}, BLIND),
    masked("gradient 1e-30 of what it is", lambda z, x: z(x).detach() + 1e-30 * (z(x) - z(x).detach()), {WRONG}, BLIND),
    masked("gradient 1e30 of what it is", lambda z, x: z(x).detach() + 1e30 * (z(x) - z(x).detach()), {WRONG}, BLIND),
    masked("gradient of another image", lambda z, x: z(x.flip(0)) - z(x.flip(0)).detach() + z(x).detach(), {WRONG}),
    masked("gradient cut at one class", at_one_class(lambda z, x: z(x.detach())), {VANISHED}, "", slack=2 / N),
    masked("gradient reversed at one class", at_one_class(lambda z, x: z(2 * x.detach() - x)), {WRONG}, "", slack=2 / N),
    masked("gradient of one pixel", lambda z, x: z(x.detach() + (x - x.detach()) * (torch.arange(16).view(4, 4) == 0)), (), ""),
    masked("saturated logits", lambda z, x: 1e6 * z(x), {VANISHED}),
    masked("saturated probabilities", lambda z, x: (1e6 * z(x)).softmax(1), {VANISHED, "probabilities"}, BLIND),
    masked("probabilities", lambda z, x: z(x).softmax(1), {"probabilities"}),
    masked("logits through a staircase", lambda z, x: (64 * z(x)).floor() / 64 + 1e-4 * z(x).detach(), {VANISHED}, "", slack=2 / N),
    Animal("pixels rounded to nine values", rounded(8), quantised_truth(8), frozenset({VANISHED}), BLIND, slack=2 / N),
    Animal("pixels rounded to five values", rounded(4), quantised_truth(4), frozenset({VANISHED}), BLIND, slack=2 / N),
    Animal(
        "pixels rounded, straight through",
        lambda: Made(lambda z, x: z(x + ((8 * x).round() / 8 - x).detach())),
        quantised_truth(8),
        slack=2 / N,
    ),
    # no gradient at all
    masked("no_grad inside", without_grad, {VANISHED}, GONE),
    masked("inference_mode inside", in_inference, {VANISHED}, GONE),
    masked("NumPy inside", in_numpy, {VANISHED}, GONE),
    masked("detached", lambda z, x: z(x.detach()), {VANISHED}, GONE),
    masked("a backward pass that raises", lambda z, x: Raises.apply(z(x)), {VANISHED}, GONE),
    masked("one-hot answers", one_hot, {VANISHED}, GONE, slack=4 / N),
    masked("integer logits", ranks, {VANISHED}, GONE, slack=4 / N),
    masked("answers in whole hundredths, integers", lambda z, x: (100 * z(x)).round().long(), {VANISHED}, GONE, slack=2 / N),
    Animal("dynamically quantised", dynamic, SAME, frozenset({VANISHED}), GONE, slack=3 / N),
    # types
    Animal("half-precision weights", lambda: typed(torch.float16), SAME, facts="computes in float16", slack=2 / N),
    Animal("bfloat16 weights", lambda: typed(torch.bfloat16), SAME, facts="computes in bfloat16", slack=4 / N),
    Animal("double weights", lambda: typed(torch.float64), SAME, facts="computes in float64"),
    masked("half-precision logits", lambda z, x: z(x).half(), slack=2 / N),
    masked("double logits", lambda z, x: z(x).double()),
    # answers
    masked("a tuple", lambda z, x: (z(x), x), (), "out of tuple"),
    masked("a list of one", lambda z, x: [z(x)], (), "out of list"),
    masked("a dict with logits", lambda z, x: {"loss": None, "logits": z(x)}, (), "out of dict"),
    masked("an object with .logits", lambda z, x: SimpleNamespace(logits=z(x)), (), "out of SimpleNamespace"),
    # what it does to its images, and to itself
    masked("writes into its images", writes, (), "writes into its images"),
    masked("writes into its images without a gradient", writes_without_gradient, (), "writes into its images"),
    Animal("weights that are not numbers, unused", Unused, SAME, facts="not finite: other.weight"),
    Animal("compiled", lambda: torch.compile(Made(lambda z, x: z(x)), backend="eager"), SAME, facts="judged as what was compiled"),
    Animal("scripted", lambda: torch.jit.script(typed(torch.float32)), SAME),
    # names that mean something else
    Animal("an attribute called draws", lambda: with_attributes(draws=3), SAME),
    Animal("an attribute called features", lambda: with_attributes(features=7), SAME),
    Animal("features that fail", lambda: with_attributes(features=lambda x: x.nothing), SAME),
    Animal("an attribute called purifier", lambda: with_attributes(purifier="none"), SAME),
    Animal("an attribute called single", lambda: with_attributes(single=True, facts="?", differentiable=False), SAME),
    # random
    Animal("noise on the logits", Noisy, noisy_truth(), facts="random", data=two, slack=0.03),
    Animal("Monte Carlo dropout", lambda: kept(False), dropout_truth(), facts="random", data=two, slack=0.03, as_it_is=True),
    Animal(
        "Monte Carlo dropout by its own eval()",
        lambda: kept(True),
        dropout_truth(),
        facts="in training mode inside: drop",
        data=two,
        slack=0.03,
    ),
    # to be refused
    refused("in training mode", lambda: Linear().train(), "model: is in training mode", True),
    refused("batch norm in training mode inside", normed_in_training, "model: changes while it is judged (got another 0.", True),
    refused("a buffer that follows the images", Remembering, "model: changes while it is judged (got another seen"),
    refused("another function after thirty calls", lambda: Counting(30), "model: changes while it is judged"),
    refused("another function after five hundred calls", lambda: Counting(500), "model: changes while it is judged"),
    refused("parameters without a shape", lazy, "model: 1.weight has no shape yet"),
    refused("parameters on the meta device", meta, "model: 1.weight holds no numbers"),
    refused(
        "ends the program", lambda: Made(lambda z, x: sys.exit(3)), "model: cannot take float32 images [2, 1, 4, 4] (got SystemExit: 3)"
    ),
    refused("raises", lambda: Made(lambda z, x: 1 / 0), "model: cannot take float32 images [2, 1, 4, 4] (got ZeroDivisionError"),
    refused(
        "no logits", lambda: Made(lambda z, x: "seven"), "model: cannot take float32 images [2, 1, 4, 4] (got TypeError: its answer is str"
    ),
    refused("one output", lambda: Made(lambda z, x: z(x)[:, :1]), "model: should give logits [n, classes] (got float32 [2, 1]"),
    refused("logits of the batch", lambda: Made(lambda z, x: z(x).flatten()), "model: should give logits [n, classes] (got float32 [10]"),
    refused("logits that are not numbers", lambda: Made(lambda z, x: z(x) * torch.nan), "model: should give finite logits"),
    refused("fewer outputs than classes", lambda: Made(lambda z, x: z(x)[:, :3]), "labels: should be in 0..2 (got 4)"),
    refused(
        "other images", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(5)).eval(), "model: 2.weight has no shape yet"
    ),
]
