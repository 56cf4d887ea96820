"""Every flag of docs/flags.md on two models, or two outcomes, that differ little: one raises it, the other does not."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import two_of_five
from torch import Tensor, nn

from basin.config.kinds import choose
from basin.config.solver import Solver
from basin.config.suite import Suite
from basin.evaluation.cascade import Evaluation
from basin.evaluation.declaration import drawn
from basin.evaluation.diagnostics import Diagnosis, diagnosing
from basin.evaluation.robustness import Result, evaluate
from basin.evaluation.ways import Attempt, Way
from basin.models.ode import Flow
from basin.threat.ball import ThreatModel

DOCS = Path(__file__).parents[2] / "docs/flags.md"
BALL = ThreatModel(norm="linf", eps=0.1)
N = 100
SUITE = {"attacks": {"pgd": {"kind": "pgd", "steps": 5}}}
INSIDE = two_of_five()
INSIDE.b[2:] = -10.0  # far below, and not so far that the logits' spread would hide what differs


class Made(nn.Module):
    """An honest linear model, and what a test makes of it."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor] = lambda z, x: z(x), **parts: nn.Module):
        super().__init__()
        self.z, self.made, self.parts = INSIDE, forward, nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.made(self.z, x, **self.parts)


def images() -> Tensor:
    return 0.3 + 0.4 * torch.rand((N, 1, 4, 4), generator=torch.Generator().manual_seed(0))


def evaluated(model: nn.Module, suite=SUITE) -> Result:
    x = images()
    return evaluate(model.eval(), None, x, INSIDE(x).argmax(1), BALL, Suite.model_validate(suite), (0, "flags"))


def test_an_honest_model_raises_none():
    found = evaluated(Made())
    assert found.diagnosis.flags == [] and 0.1 < found.outcomes.robust < 0.9


# Read off a model -------------------------------------------------------------------------------------------------------------------------


def rounded(z, x):
    return z((x * 4).round() / 4)


def straight_through(z, x):
    return z(x + ((x * 4).round() / 4 - x).detach())


def trapped(z, x):
    """Along its gradient the margin falls, rises again, and behind that, at the rim of the ball, falls below zero."""
    t = (x.flatten(1).mean(1) - images().to(x).flatten(1).mean(1)[: len(x)]) / BALL.eps
    margin = 0.5 + 0.4 * torch.cos(12 * t + 0.3) - 20 * torch.relu(t - 0.9)
    return torch.stack([margin, *torch.zeros(4, len(x))], 1).gather(1, (torch.arange(5) - z(images()).argmax(1)[: len(x), None]) % 5)


def rooted(x):
    """Nothing, with a derivative of 0 times infinity where the first pixel is above 0."""
    t = x.flatten(1)[:, :1]
    return 0 * (t.abs() - t).sqrt()


def noisy(size):
    """A linear model whose weights are drawn anew at every pass."""
    return Made(lambda z, x: z(x) + (x.flatten(1) - 0.5) @ (size * torch.randn(16, 5)))


class Swirl(nn.Module):
    """du/dt = (u v) A with A antisymmetric, dv/dt = -4 v (1 - v^2): v dies out; followed backwards, what rounding left of it does not."""

    def __init__(self):
        super().__init__()
        B = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
        self.A = nn.Parameter(B - B.T)

    def forward(self, s: Tensor) -> Tensor:
        u, v = s.chunk(2, 1)
        return torch.cat([(u * v) @ self.A, -4 * v * (1 - v**2)], 1)


def swirled(T):
    flow = Flow(Swirl(), T, Solver(method="rk4", steps=12))
    return Made(lambda z, x, flow: flow(torch.cat([u := z(x).clamp(-9, 9), torch.full_like(u, 0.5)], 1))[:, :5], flow=flow)


def decaying(steps):
    """dz/dt = -8 z for a unit of time."""
    drift = nn.Linear(5, 5, bias=False)
    nn.init.constant_(drift.weight, 0)
    drift.weight.data.fill_diagonal_(-8.0)
    return Made(lambda z, x, flow: flow(z(x)), flow=Flow(drift, 1.0, Solver(method="euler", steps=steps)))


MODELS = {
    "vanishing-gradient": (Made(lambda z, x: 1e6 * z(x)), Made(lambda z, x: 3 * z(x))),
    "wrong-gradient": (Made(lambda z, x: z(2 * x.detach() - x)), Made(lambda z, x: z(1.3 * x - 0.3 * x.detach()))),
    "large-radius-holds": (Made(rounded), Made(straight_through)),
    "one-step-beats-many": (Made(trapped), Made(lambda z, x: z(x**2 + 0.25))),
    "noise-as-strong": (Made(lambda z, x: z(2 * x.detach() - x)), Made()),  # noise breaks a fifth of both, PGD none and nearly all
    "gradient-overflows": (Made(lambda z, x: z(x) + rooted(0.5 - x)), Made(lambda z, x: z(x) + rooted(0.2 - x))),
    "probabilities": (Made(lambda z, x: z(x).softmax(1)), Made(lambda z, x: z(x).log_softmax(1))),
    "batch-dependent": (Made(lambda z, x: z(x) + z(x).mean(0)), Made(lambda z, x: z(x) + z(x).mean(1, keepdim=True))),
    "adjoint-disagrees": (swirled(3.0), swirled(0.3)),  # a median cosine of 0.56, and of 1
    "stiff-solve": (decaying(2), decaying(5)),
}


@pytest.mark.parametrize(
    ("flag", "instead"),
    [("vanishing-gradient", lambda z, x: z(x.detach())), ("wrong-gradient", lambda z, x: z(2 * x.detach() - x))],
)
@pytest.mark.parametrize("share", [0.02, 0.08])
def test_a_gradient_that_misleads_at_few_images_is_told(flag, instead, share):
    """As many as one class may have; the rest of the model is honest, and each of the images would fall."""
    x = images().repeat(4, 1, 1, 1)
    few = torch.arange(len(x)) < share * len(x)

    def made(z, x_):
        hidden = (x_.detach().flatten(1)[:, 0] > 0.99)[:, None]
        return torch.where(hidden, instead(z, x_), z(x_))

    x[few, 0, 0, 0] = 1.0
    found = evaluate(Made(made).eval(), None, x, INSIDE(x).argmax(1), BALL, Suite.model_validate(SUITE), (0, "flags"))
    assert (flag in found.flags) is (flag == "vanishing-gradient" or share > 0.05)


@pytest.mark.parametrize("flag", MODELS)
def test_a_probe_raises_its_flag_where_it_is_due(flag):
    raised, quiet = (evaluated(model).diagnosis.flags for model in MODELS[flag])
    assert flag in raised and flag not in quiet, (raised, quiet)


def test_too_few_draws_are_told_and_more_of_them_help():
    model, pgd = drawn(noisy(1.5).eval(), images()), choose("attacks", {"kind": "pgd"})
    outcomes, declared = (found := evaluated(model, {"attacks": {"fgsm": {"kind": "fgsm"}}})).outcomes, found.declared
    evaluation = Evaluation(model, None, BALL, (0, "flags"), N, randomised=True)
    few, enough = (diagnosing(evaluation, {"pgd": Attempt(pgd, Way(draws=draws))}, declared)(outcomes) for draws in (1, 20))
    assert "too-few-draws" in found.diagnosis.flags and "too-few-draws" in few.flags and "too-few-draws" not in enough.flags
    figures = [one.probes["signal_to_noise"] for one in (few, enough)]
    assert figures[1] == pytest.approx(figures[0] * 20**0.5) and figures[0] < 1 < figures[1]


# Read off outcomes ------------------------------------------------------------------------------------------------------------------------


def attempts(**doublings: int) -> dict[str, Attempt]:
    """A suite; `pgd_longer=1` makes that attempt the first of a series of doublings."""
    kinds = {
        "pgd": {"kind": "pgd"},
        "square": {"kind": "square"},
        "transfer": {"kind": "transfer", "attacks": [{"kind": "fgsm"}]},
        "pgd_longer": {"kind": "pgd", "steps": 40},
    }
    return {name: Attempt(choose("attacks", kind), doubling=doublings.get(name, 0)) for name, kind in kinds.items()}


def taken(by: str, images: int) -> dict:
    return {"attack": [by] * images + [""] * (N - images)}


def shares(held: int) -> Tensor:
    return (torch.arange(N) < held).float()


def answered(wrong: Tensor, by: Tensor | int, **more: Tensor) -> dict:
    """Clean answers: right but for some."""
    right = more.get("labels", LABELS)
    return {"clean": torch.where(wrong, torch.as_tensor(by), right), "clean_share": (~wrong).float()} | more


LABELS = INSIDE(images()).argmax(1)
NTH = torch.stack([LABELS == 0, LABELS == 1]).cumsum(1).gather(0, LABELS[None])[0]  # of its class
LATE = torch.arange(N) >= 64  # beyond the images that are probed
FIVE = torch.where(LATE, 2 + torch.arange(N) % 3, LABELS)  # twelve images of each class from 2 on
OUTCOMES = {
    "at-chance": (answered(NTH % 2 == 0, 1 - LABELS), answered(NTH % 4 == 0, 1 - LABELS)),
    "class-not-answered": (answered(LATE, 0, labels=FIVE), answered(LATE & (torch.arange(N) % 5 > 1), 0, labels=FIVE)),
    "more-outputs-than-classes": (answered(NTH < 6, 4), answered(NTH < 5, 4)),
    "black-box-beats-white-box": (taken("square", 3), taken("square", 0)),
    "transfer-beats-white-box": (taken("transfer", 3), taken("transfer", 0)),
    "more-steps-help": ({"after": {"pgd": 0.5, "pgd_longer": 0.49}}, {"after": {"pgd": 0.5, "pgd_longer": 0.496}}),
    "gradient-masked": ({"masked": shares(96), "share": shares(90)}, {"masked": shares(94), "share": shares(90)}),
}


@pytest.fixture(scope="module")
def honest() -> Result:
    return evaluated(Made())


def diagnosed(honest: Result, tried: dict[str, Attempt], **changed) -> Diagnosis:
    evaluation = Evaluation(Made().eval(), None, BALL, (0, "flags"), N)
    return diagnosing(evaluation, tried, honest.declared)(replace(honest.outcomes, **changed))


@pytest.mark.parametrize("flag", OUTCOMES)
def test_outcomes_raise_a_flag_past_its_limit(flag, honest):
    past, within = OUTCOMES[flag]
    assert diagnosed(honest, attempts(pgd_longer=1), **past).flags == [flag]
    assert diagnosed(honest, attempts(pgd_longer=1), **within).flags == []


@pytest.mark.parametrize("name", ["square", "transfer"])
def test_what_ran_before_any_gradient_says_nothing_against_gradients(name, honest):
    """Else a cascade that begins with black boxes would blame the attacks that came after."""
    first = {name: attempts()[name], "pgd": attempts()["pgd"]}
    assert diagnosed(honest, first, **taken(name, 50)).flags == []


def test_every_documented_flag_is_tested_here_and_no_other():
    documented = re.findall(r"^## (\S+)$", DOCS.read_text(), re.M)
    assert sorted(documented) == sorted([*MODELS, *OUTCOMES, "too-few-draws"])
