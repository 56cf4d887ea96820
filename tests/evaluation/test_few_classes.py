"""Two and three classes: a suite fits itself, says what it replaced, and ends at the number that is known."""

import logging
import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from small import Linear
from torch import nn

from basin.cli import app
from basin.config import params
from basin.config.kinds import choose
from basin.config.splits import SplitSettings
from basin.config.suite import READY, Suite, replaced
from basin.data.splits import Source, Split, prepare
from basin.errors import Mistake
from basin.evaluation import outside
from basin.evaluation.adaptive import attempts
from basin.evaluation.cascade import Evaluation
from basin.evaluation.declaration import declare
from basin.evaluation.robustness import evaluate
from basin.randomness import generator
from basin.threat.ball import ThreatModel
from basin.threat.target import Target

ROOT = Path(__file__).resolve().parents[2]
FEWER = {"steps": 50, "queries": 50, "doublings": 0, "draws": 5}  # enough for what is linear
classes = pytest.mark.parametrize("classes", [2, 3])


def linear(classes: int, n: int = 60):
    """A linear model whose classes meet at the grey image, images around it, and a radius that half of them withstand."""
    draw = torch.Generator().manual_seed(classes)
    W = torch.randn(classes, 16, generator=draw)
    model = Linear(W, -W.sum(1) / 2).eval()
    x = 0.5 + 0.4 * (torch.rand(n, 1, 4, 4, generator=draw) - 0.5)
    y = model(x).argmax(1)
    return model, x, y, ThreatModel(norm="linf", eps=model.margin(x, y).median().item())


def suite(name: str) -> Suite:
    """The ready-made suite with fewer steps, and without the 5,000 queries of AutoAttack's Square, which take half a minute."""
    table = deepcopy(READY[name])
    for part in table.get("attacks", {}).values():
        part |= {key: number for key, number in FEWER.items() if key in part}
        part |= {"attacks": ["apgd-ce", "apgd-t", "fab-t"]} if part["kind"] == "autoattack" else {}
    return Suite.model_validate(table | ({"adaptive": table["adaptive"] | FEWER} if "adaptive" in table else {}))


class Noisy(nn.Module):
    """A model with normal noise on its logits."""

    def __init__(self, model: nn.Module, sigma: float):
        super().__init__()
        self.model, self.sigma = model, sigma

    def forward(self, x):
        z = self.model(x)
        return z + self.sigma * torch.randn(z.shape)


# The number -------------------------------------------------------------------------------------------------------------------------------


def judged(name: str, classes: int, twin: bool = False):
    """(the result of a suite, which images are clear of the radius by 2%, which of these it should leave robust)."""
    model, x, y, ball = linear(classes)
    result = evaluate(model, model if twin else None, x, y, ball, suite(name), (0, "few"))
    ratio = model.margin(x, y) / ball.eps
    clear = (ratio - 1).abs() > 0.02
    assert clear.sum() > 50
    return result, result.outcomes.share[clear] == 1, (ratio > 1)[clear]


@classes
@pytest.mark.parametrize(("name", "twin"), [("standard", False), ("autoattack", False), ("adaptive", False), ("adaptive", True)])
def test_a_suite_ends_at_the_known_number(name, twin, classes):
    result, robust, known = judged(name, classes, twin)
    assert torch.equal(robust, known)
    assert twin or result.flags == []  # with itself as its twin, what is transferred is its own attack, before its turn


@classes
def test_a_quick_suite_does_too(classes):
    _, robust, known = judged("quick", classes)
    assert torch.equal(robust, known)


@pytest.mark.parametrize("name", ["adaptive", "autoattack"])
def test_a_random_model_of_two_classes_ends_at_its_expectation(name):
    """Misread where the noise's difference exceeds what is left of the gap: Phi((margin - eps) |w_0 - w_1|_1 / (sigma sqrt 2))."""
    model, x, y, ball = linear(2)
    width = (model.W[0] - model.W[1]).norm(1)
    sigma = 0.5 * ball.eps * width.item()
    known = torch.distributions.Normal(0, sigma * 2**0.5).cdf((model.margin(x, y) - ball.eps) * width)
    result = evaluate(Noisy(model, sigma).eval(), None, x, y, ball, suite(name), (0, "few"))
    assert abs(result.worst_case - known.mean()) < 0.04  # 60 x 100 draws: 0.0065


# What is replaced -------------------------------------------------------------------------------------------------------------------------


@classes
def test_it_says_what_it_replaced(classes, caplog):
    model, x, y, ball = linear(classes, n=8)
    with caplog.at_level(logging.INFO, "basin.evaluation.robustness"):
        result = evaluate(model, None, x, y, ball, suite("standard"), (0, "few"))
    words = "apgd (loss {}_targeted, order nearest, steps 50, targets 5)"
    words = f"{words.format('dlr')} is run as {words.format('margin')}"
    assert result.replaced == {"apgd_nearest": words}
    assert list(result.attacks) == [
        name for name in READY["standard"]["attacks"] if name not in ("transfer", "square")
    ]  # there is no twin, and square was not earned
    assert [record.message for record in caplog.records] == [f"suite: {classes} classes: {words}"]


AUTOATTACK = [
    ({}, 3, False, "(attacks [apgd-ce, fab-t, square], version standard)"),
    ({"version": "plus"}, 3, False, "(attacks [apgd-ce, apgd-dlr, fab, square, fab-t], version plus)"),
    ({"version": "plus"}, 2, False, "(attacks [apgd-ce, fab, square, fab-t], version plus)"),
    ({"version": "rand"}, 2, True, "(attacks [apgd-ce], version rand)"),
    ({}, 2, True, "(attacks [apgd-ce], version rand)"),
    ({}, 3, True, "(version rand)"),
    ({"version": "custom", "attacks": ["apgd-t", "square"]}, 3, False, "(attacks [square], version custom)"),
]


@pytest.mark.parametrize(("settings", "classes", "randomised", "run"), AUTOATTACK)
def test_autoattack_says_what_is_left_of_it(settings, classes, randomised, run):
    choice = choose("attacks", {"kind": "autoattack", **settings})
    assert replaced({"aa": choice}, classes, randomised) == {"aa": f"{choice} is run as autoattack {run}"}


@pytest.mark.parametrize(("settings", "classes"), [({"version": "rand"}, 3), ({"version": "custom", "attacks": ["apgd-ce"]}, 2)])
def test_what_is_defined_stays_as_it_is(settings, classes):
    assert replaced({"aa": choose("attacks", {"kind": "autoattack", **settings})}, classes) == {}


def test_on_four_classes_nothing_changes():
    shipped = [one for path in ("params.yaml", *(ROOT / "params").glob("*.yaml")) for one in params.load(ROOT / path).suites.values()]
    for one in [*shipped, *map(outside.suite, READY)]:
        assert replaced(one.attacks, 4) == {}
    model, x, _, _ = linear(4, n=8)
    tried = attempts(declare(model, model, x), outside.suite("adaptive").adaptive, model)
    order = "margin pma transfer features apgd_nearest a3 apgd_ce apgd_targeted fab square".split()
    assert list(tried) == [*order, "apgd_ce x2", "apgd_ce x4"]
    assert str(tried["apgd_targeted"].attack) == "apgd (loss dlr_targeted, steps 100, targets 9)"
    assert replaced({name: attempt.attack for name, attempt in tried.items()}, 4) == {}


def test_a_transfer_fits_what_it_holds():
    choice = choose("attacks", {"kind": "transfer", "attacks": [{"kind": "fgsm"}, {"kind": "apgd", "loss": "dlr"}]})
    assert replaced({"t": choice}, 3) == {}
    assert replaced({"t": choice}, 2)["t"].endswith("is run as transfer (attacks [fgsm, apgd (loss margin)])")


def test_of_nothing_that_is_defined_no_suite_is_made(monkeypatch):
    monkeypatch.setattr(Evaluation, "run", lambda *_: pytest.fail("an attack ran"))
    model, x, y, ball = linear(3, n=8)
    alone = Suite.model_validate({"attacks": {"last": {"kind": "autoattack", "version": "custom", "attacks": ["apgd-t"]}}})
    message = "attack autoattack: all of its attacks need more classes (got apgd-t on 3). Give apgd-ce."
    with pytest.raises(Mistake, match=re.escape(message)):
        evaluate(model, None, x, y, ball, alone, (0, "three"))


@pytest.mark.parametrize("loss", ["dlr", "dlr_targeted", "margin", "margin_targeted"])
def test_a_loss_is_given_its_own_classes_or_a_margin_by_the_attack_itself(loss):
    model, x, y, ball = linear(2)
    choice = choose("attacks", {"kind": "apgd", "loss": loss, "steps": 50})
    found = choice.module.perturb(choice.params, Target(model, ball), x, y, generator(0, "few"))
    assert torch.equal(
        (model(found).argmax(1) == y)[clear := (model.margin(x, y) / ball.eps - 1).abs() > 0.02], (model.margin(x, y) > ball.eps)[clear]
    )


def test_check_says_it_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params/digits.yaml").read_bytes())
    images = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    divided = Source(Split(images, torch.arange(40) % 2), None, ("a", "b"))
    prepare(divided, SplitSettings(), "digits", "digits", 0, tmp_path / "data/prepared")
    with pytest.raises(SystemExit) as end:
        app.app(["check", "--no-data"])
    first, *others = capsys.readouterr().out.splitlines()
    assert end.value.code == 0 and first == "params.yaml: no mistakes, and its models can be built"
    assert [line.partition(":")[0] for line in others] == [
        "suites.quick.attacks.apgd_nearest", "suites.standard.attacks.apgd_nearest", "suites.standard.attacks.transfer",
    ]  # fmt: skip
    assert others[0].endswith(
        ": on the 2 classes of data/prepared apgd (loss dlr_targeted, order nearest, steps 20, targets 5) is run as "
        "apgd (loss margin_targeted, order nearest, steps 20, targets 5)"
    )
