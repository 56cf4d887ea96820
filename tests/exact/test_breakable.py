"""Models that were built to be overestimated: a naive evaluation believes each of them, the suite `adaptive` does not, and says why.

Most come in two forms: with a layer that says what it is, and as a model from outside, which says nothing.
"""

import copy
from collections.abc import Callable

import pytest
import torch
import torchdiffeq
from small import classifier, few, fit
from torch import Tensor, nn

from basin.config.solver import Solver
from basin.config.suite import Suite
from basin.evaluation.declaration import declare, difference_error
from basin.evaluation.robustness import Result, evaluate
from basin.models.ode import Flow
from basin.models.substitutes import Substitutable
from basin.randomness import Random
from basin.threat.ball import ThreatModel

BALL = ThreatModel(norm="linf", eps=0.25)
NAIVE = Suite.model_validate({"attacks": {"pgd": {"kind": "pgd", "steps": 20, "step": 0.1}}})
ADAPTIVE = Suite.model_validate({"adaptive": {"steps": 20, "targets": 3, "queries": 400, "draws": 10, "doublings": 1}})


class Quantised(nn.Module):
    """Rounds the pixels to nine values: the gradient is zero everywhere."""

    def __init__(self, inside: nn.Module, rounding: Callable[[Tensor], Tensor]):
        super().__init__()
        self.inside, self.rounding = inside, rounding

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(self.rounding(8 * x) / 8)


class Rounding(Substitutable):
    gradients = ("exact", "identity")

    def forward(self, x: Tensor) -> Tensor:
        return x.round() if self.gradient == "exact" else x + (x.round() - x).detach()


class Saturated(nn.Module):
    """Logits so far apart that in float32 their cross-entropy has no gradient; as probabilities, no loss has."""

    def __init__(self, inside: nn.Module, probabilities: bool = False):
        super().__init__()
        self.inside, self.probabilities = inside, probabilities

    def forward(self, x: Tensor) -> Tensor:
        z = 1e6 * self.inside(x)
        return z.softmax(1) if self.probabilities else z


class Ripple(nn.Module):
    """Ripples in random directions over the image: they move the pixels little and the gradient anywhere."""

    def __init__(self, normal: Callable[[tuple[int, ...], Tensor], Tensor]):
        super().__init__()
        self.normal = normal

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return (flat + 0.05 * torch.sin(300 * flat @ self.normal(2 * flat.shape[1:], x))).view_as(x)


class Draw(Random):
    def forward(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return self.normal(shape, like)


def rippled(inside: nn.Module) -> nn.Module:
    model = copy.deepcopy(inside)
    model.purifier = Ripple(Draw())
    return model


class Swirl(nn.Module):
    """du/dt = (u v) A with A antisymmetric, dv/dt = -6 v (1 - v^2): forwards v dies out and u comes to rest; backwards in time v goes to
    +-1 from what is left of it, whichever step is taken, and u, with the adjoint, is turned round and round."""

    def __init__(self, width: int):
        super().__init__()
        B = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
        self.A = nn.Parameter((B - B.T) / width**0.5)

    def forward(self, z: Tensor) -> Tensor:
        u, v = z.chunk(2, 1)
        return torch.cat([(u * v) @ self.A, -6 * v * (1 - v**2)], 1)


T, STEPS = 6.0, 30


class Swirled(nn.Module):
    """The logits after T units of time, by a solve with the adjoint's gradient."""

    def __init__(self, inside: nn.Module, solve: Callable[[nn.Module], Callable[[Tensor], Tensor]]):
        super().__init__()
        self.inside, self.drift = inside, Swirl(10)
        self.solve = solve(self.drift)

    def forward(self, x: Tensor) -> Tensor:
        z = self.inside(x)
        return self.solve(torch.cat([z, 0.5 * z.tanh()], 1)).chunk(2, 1)[0]


def declared(drift: nn.Module) -> Callable[[Tensor], Tensor]:
    return Flow(drift, T, Solver(method="midpoint", steps=STEPS, gradient="adjoint"))


def by_torchdiffeq(drift: nn.Module) -> Callable[[Tensor], Tensor]:
    class Timed(nn.Module):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return drift(z)

    timed, options = Timed(), {"step_size": T / STEPS}
    return lambda z: torchdiffeq.odeint_adjoint(timed, z, torch.tensor([0.0, T]), method="midpoint", options=options, adjoint_params=())[-1]


def by_hand(drift: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda z: Adjoint.apply(z, drift)


class Adjoint(torch.autograd.Function):
    """Of the midpoint rule: backwards in time by it, and not through the steps that were taken."""

    @staticmethod
    def forward(ctx, z, drift):
        h = T / STEPS
        for _ in range(STEPS):
            z = z + h * drift(z + h / 2 * drift(z))
        ctx.save_for_backward(z)
        ctx.drift = drift
        return z

    @staticmethod
    def backward(ctx, a):
        (z,), h = ctx.saved_tensors, T / STEPS
        for _ in range(STEPS):
            with torch.enable_grad():
                middle = (z - h / 2 * ctx.drift(z)).detach().requires_grad_()
                f = ctx.drift(middle)
                (change,) = torch.autograd.grad(f, middle, a)
            z, a = (z - h * f).detach(), a + h * change
        return a, None


@pytest.fixture(scope="module")
def inside(digits) -> nn.Module:
    return fit(classifier(), digits["train"], epochs=8).eval()


def judged(model: nn.Module, suite: Suite, digits, n: int = 40) -> Result:
    x, y = few(digits["test"], n)
    return evaluate(model.eval().requires_grad_(False), None, x, y, BALL, suite, (0, "breakable"))


def test_the_model_inside_breaks_and_is_honest(inside, digits):
    found = judged(inside, NAIVE, digits)
    assert found.outcomes.robust == 0 and found.diagnosis.flags == [] and not found.declared.blind


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_a_wrong_gradient_is_noticed_whatever_its_size(size, inside, digits):
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = inside(x)
            return z.detach() + size * (z - z.detach())

    assert difference_error(inside, *few(digits["test"], 16)).median() < 0.1
    assert difference_error(Scaled(), *few(digits["test"], 16)).median() > 0.9


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_draws_are_noticed_beside_a_logit_that_is_far_below_all(noise, inside, digits):
    class Far(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = inside(x)
            return torch.cat([z[:, :9] + noise * torch.randn(len(z), 9), z[:, 9:] - 1e4], 1)

    assert declare(Far().eval(), None, few(digits["test"], 16)[0]).randomised == (noise > 0)


@pytest.mark.slow
def test_an_attack_named_like_an_attempt_takes_its_place(inside, digits):
    lasting = {"steps": 8, "targets": 2, "queries": 20, "draws": 2, "doublings": 0}
    listed = {"square": {"kind": "square", "queries": 1}, "apgd_ce": {"kind": "apgd", "steps": 2}}
    plain, one = (Suite.model_validate({"attacks": own, "adaptive": lasting}) for own in ({}, listed))
    far = ThreatModel(norm="linf", eps=0.001)  # nothing falls, so that every attempt runs on every image
    x, y = few(digits["test"], 20)
    longer, shorter = (evaluate(inside.requires_grad_(False), None, x, y, far, suite, (0, "listed")).outcomes for suite in (plain, one))
    assert list(longer.after)[0] == "margin" and list(shorter.after)[:2] == ["square", "apgd_ce"]
    assert set(shorter.after) == set(longer.after) and shorter.passes < longer.passes


BREAKABLE = {
    "quantised, declared": (lambda inside: Quantised(inside, Rounding()), {"vanishing-gradient"}),
    "quantised": (lambda inside: Quantised(inside, torch.round), {"vanishing-gradient"}),
    "quantised, detached": (lambda inside: Quantised(inside, lambda x: x.detach().round() + 0 * x), {"vanishing-gradient"}),
    "saturated logits": (Saturated, {"vanishing-gradient"}),
    "saturated probabilities": (lambda inside: Saturated(inside, True), {"vanishing-gradient", "probabilities"}),
    "random, declared": (rippled, {"too-few-draws"}),
    "random": (lambda inside: nn.Sequential(Ripple(lambda shape, like: torch.randn(shape)), inside), {"too-few-draws"}),
    "adjoint, declared": (lambda inside: Swirled(inside, declared), {"wrong-gradient", "adjoint-disagrees"}),
    "adjoint, by torchdiffeq": (lambda inside: Swirled(inside, by_torchdiffeq), {"wrong-gradient", "adjoint-disagrees"}),
    "adjoint, by hand": (lambda inside: Swirled(inside, by_hand), {"wrong-gradient"}),
}


MARKED = [pytest.param(*case, id=name, marks=[pytest.mark.slow] * (name == "random")) for name, case in BREAKABLE.items()]


@pytest.mark.parametrize(("make", "flags"), MARKED)
def test_what_a_naive_evaluation_believes_is_flagged_by_it_and_broken_by_adaptive(make, flags, inside, digits):
    model = make(inside)
    naive = judged(model, NAIVE, digits)
    assert naive.outcomes.robust > 0.6 and flags <= set(naive.diagnosis.flags)
    adaptive = judged(model, ADAPTIVE, digits)
    assert adaptive.outcomes.robust < 0.05, adaptive.outcomes.after
    assert flags <= set(adaptive.diagnosis.flags)
