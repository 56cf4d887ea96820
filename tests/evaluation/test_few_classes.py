"""Two and three classes: a suite fits itself, says what it replaced, and ends at the number that is known."""

import logging
from copy import deepcopy

import pytest
import torch
from small import Linear
from torch import nn

from basin.config.suite import Suite, replaced
from basin.evaluation import outside
from basin.evaluation.adaptive import attempts
from basin.evaluation.declaration import declare
from basin.evaluation.robustness import evaluate
from basin.threat.ball import ThreatModel

FEWER = {"steps": 50, "queries": 50, "doublings": 0, "draws": 5}  # enough for what is linear
classes = pytest.mark.parametrize("classes", [2, 3])
APGD = "apgd (loss dlr_targeted, steps 50, targets 9) is run as apgd (loss margin_targeted, steps 50, targets 9)"


def linear(classes: int, n: int = 60):
    """A linear model whose classes meet at the grey image, images around it, and a radius that half of them withstand."""
    draw = torch.Generator().manual_seed(classes)
    W = torch.randn(classes, 16, generator=draw)
    model = Linear(W, -W.sum(1) / 2).eval()
    x = 0.5 + 0.4 * (torch.rand(n, 1, 4, 4, generator=draw) - 0.5)
    y = model(x).argmax(1)
    return model, x, y, ThreatModel(norm="linf", eps=model.margin(x, y).median().item())


def suite(name: str) -> Suite:
    """The ready-made suite, with fewer steps, and Square in AutoAttack left out, whose 5,000 queries take half a minute."""
    table = deepcopy(outside.SUITES[name])
    for part in (*table.get("attacks", {}).values(), table.get("adaptive", {})):
        part.update({key: number for key, number in FEWER.items() if key in part or (part is table.get("adaptive") and key in FEWER)})
        if part.get("kind") == "autoattack":
            part["attacks"] = ["apgd-ce", "apgd-t", "fab-t"]
    return Suite.model_validate(table)


class Noisy(nn.Module):
    """A model with noise on its logits, as small as half the distance to the boundary of nearly every image."""

    def __init__(self, model: nn.Module, sigma: float):
        super().__init__()
        self.model, self.sigma = model, sigma

    def forward(self, x):
        z = self.model(x)
        return z + self.sigma * torch.randn(z.shape)


@classes
@pytest.mark.parametrize("twin", [False, True], ids=["alone", "with a twin"])
@pytest.mark.parametrize("name", ["quick", "standard", "autoattack", "adaptive"])
def test_every_suite_ends_at_the_known_number(name, classes, twin):
    if twin and name != "adaptive":
        pytest.skip("which the suite does not use")
    model, x, y, ball = linear(classes)
    result = evaluate(model, model if twin else None, x, y, ball, suite(name), (0, "few"))
    ratio = model.margin(x, y) / ball.eps
    clear = (ratio - 1).abs() > 0.02
    assert clear.sum() > 50 and torch.equal(result.outcomes.share[clear] == 1, (ratio > 1)[clear])
