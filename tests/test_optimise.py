"""Training: what it promises, and that a run that was interrupted anywhere ends as if it had not been."""

import csv
import io
import logging
import math
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from small import BALL, CONVNET, SODEF, classifier, few, fit, method

from pipeline import lookup, optimise
from pipeline.errors import Mistake
from pipeline.optimise import Phase, Schedule
from pipeline.randomness import generator
from pipeline.training import natural, pgd


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


def sodef_phases(model, train):
    """Three phases, Adam with and without amsgrad, a step between epochs that depends on the policy."""
    plan = {
        "features": {"epochs": 2, "rate": 0.01, "policy": "one_cycle"},
        "stability": {"epochs": 2, "batch": 32, "rate": 0.01, "amsgrad": True, "rows": 4},
        "classifier": {"epochs": 2, "rate": 0.01, "optimiser": "sgd"},
    }
    head = lookup.find("heads", "sodef")
    return head.phases(head.Schedules.model_validate(plan), model, method("pgd", steps=2), train)


def resnet_phases(model, train):
    """Batch normalisation's running statistics, and momentum."""
    schedule = Schedule(epochs=3, batch=50, optimiser="sgd", rate=0.05, policy="one_cycle", weight_decay=1e-4)
    loss = method("natural")
    return [Phase("natural", schedule, [model.backbone, model.head], lambda x, y, g: loss(model, x, y, g))]


RUNS = {
    "sodef": (lambda: classifier(head=SODEF), sodef_phases, 6),
    "resnet": (lambda: classifier({"kind": "resnet", "depth": 8, "width": 4}), resnet_phases, 3),
}


@pytest.fixture
def train(digits):
    return digits["validation"].take(torch.arange(120))


def run(name, train, checkpoint, watch=lambda step, row: None, phases=None):
    """Bytes of the weights, the history, and what `watch` saw."""
    build, its_phases, _ = RUNS[name]
    model, seen = build(), []

    def see(step, row):
        seen.append((step, row))
        watch(step, row)

    x, y = few(train, 50)
    accuracy = lambda: (model(x).argmax(1) == y).float().mean().item()  # noqa: E731
    history = optimise.run(model, phases or its_phases(model, train), train, accuracy, (0, name), checkpoint, see)
    return save(model.state_dict()), history, seen


def kill_at(epoch):
    def watch(step, row):
        if step == epoch:
            raise Killed

    return watch


@pytest.mark.parametrize(("name", "epoch"), [(name, epoch) for name, (_, _, epochs) in RUNS.items() for epoch in range(1, epochs + 1)])
def test_interrupted_after_any_epoch_it_ends_as_if_it_had_not_been(name, epoch, train, tmp_path):
    whole, history, _ = run(name, train, tmp_path / "whole.safetensors")
    with pytest.raises(Killed):
        run(name, train, tmp_path / "cut.safetensors", kill_at(epoch))
    assert (tmp_path / "cut.safetensors").exists()
    torch.rand(7)  # another process has another global generator
    resumed, history_again, seen = run(name, train, tmp_path / "cut.safetensors")
    assert resumed == whole
    assert history_again == history
    assert [step for step, _ in seen] == list(range(epoch + 1, len(history) + 1))
    assert list(tmp_path.iterdir()) == []


def test_interrupted_within_an_epoch_it_goes_on_from_the_one_before(train, tmp_path):
    whole, history, _ = run("resnet", train, tmp_path / "whole.safetensors")
    model, calls = RUNS["resnet"][0](), []
    (phase,) = resnet_phases(model, train)

    def dying(x, y, g):
        calls.append(1)
        if len(calls) == 5:  # of three steps an epoch
            raise Killed
        return phase.loss(x, y, g)

    with pytest.raises(Killed):
        optimise.run(
            model, [Phase("natural", phase.schedule, phase.trained, dying)], train, lambda: 0.0, (0, "resnet"), tmp_path / "c.safetensors"
        )
    resumed, again, _ = run("resnet", train, tmp_path / "c.safetensors")
    assert resumed == whole
    assert [row["loss"] for row in again] == [row["loss"] for row in history]


def test_a_run_is_a_function_of_its_seed_and_name(train, tmp_path):
    def weights(seed, name):
        model = classifier()
        loss = method("pgd", steps=1)
        phase = Phase("pgd", Schedule(epochs=1), [model.backbone, model.head], lambda x, y, g: loss(model, x, y, g))
        optimise.run(model, [phase], train, lambda: 0.0, (seed, name), tmp_path / "c.safetensors")
        return save(model.state_dict())

    assert weights(0, "a") == weights(0, "a")
    assert len({weights(0, "a"), weights(1, "a"), weights(0, "b")}) == 3


def test_training_leaves_the_global_generator(train, tmp_path):
    before = torch.get_rng_state()
    run("sodef", train, tmp_path / "c.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("damage", [lambda b: b[:100], lambda b: b"", lambda b: b"\x00" * len(b), lambda b: b[:-1000]])
def test_a_damaged_checkpoint_starts_over_with_a_warning(damage, train, tmp_path, caplog):
    whole, history, _ = run("resnet", train, tmp_path / "whole.safetensors")
    path = tmp_path / "cut.safetensors"
    with pytest.raises(Killed):
        run("resnet", train, path, kill_at(2))
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        again, history_again, seen = run("resnet", train, path)
    assert (again, history_again) == (whole, history)
    assert seen[0][0] == 1
    assert [r.getMessage() for r in caplog.records if "unreadable checkpoint" in r.getMessage() and str(path) in r.getMessage()]


# A loss that is not finite ----------------------------------------------------------------------------------------------------------------


def poisoned(kind):
    """A loss that goes bad in epoch 2, step 3: its value, or its gradient alone."""

    def loss(x, y, g):
        step.append(1)
        value = torch.nn.functional.cross_entropy(model(x), y)
        if len(step) < 6:
            return value
        if kind == "value":
            return value * math.inf
        return value + (model.head.classifier.bias[0] * 0).abs().sqrt()  # 0, with derivative 0 / 0

    step, model = [], classifier()
    return model, Phase("natural", Schedule(epochs=3, batch=40, rate=0.001), [model.backbone, model.head], loss)


@pytest.mark.parametrize(("kind", "got"), [("value", "inf"), ("gradient", r"\d+\.\d+")])
def test_what_is_not_finite_is_named_and_the_last_good_epoch_stays(kind, got, train, tmp_path):
    model, phase = poisoned(kind)
    path = tmp_path / "c.safetensors"
    with pytest.raises(Mistake) as mistake:
        optimise.run(model, [phase], train, lambda: 0.0, (0, "head/x"), path)
    assert len(mistake.value.messages) == 1
    assert re.fullmatch(
        r"head/x, phase natural, epoch 2, step 3: the loss or its gradient is not finite at learning rate 0\.001 "
        rf"\(got a loss of {got}\)\. Lower schedule rate, or shorten T / add steps where an ODE is solved; the last good epoch is kept\.",
        str(mistake.value),
    )
    assert all(p.isfinite().all() for p in model.parameters())
    with safe_open(path, "pt") as file:
        assert '"epoch": 1' in file.metadata()["progress"]
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())


# Schedules --------------------------------------------------------------------------------------------------------------------------------


def test_one_cycle_rises_for_a_third_and_falls_to_nothing():
    schedule = Schedule(epochs=1, rate=2.0, policy="one_cycle")
    rates = [schedule.rate_at(step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(2.0, rel=0.04) and rates.index(max(rates)) in (29, 30)
    assert all(a < b for a, b in zip(rates[:30], rates[1:30])) and all(a > b for a, b in zip(rates[31:], rates[32:]))
    assert 0 < rates[-1] < 0.01 and min(rates) > 0
    assert {Schedule(epochs=1, rate=2.0).rate_at(step, 100) for step in range(100)} == {2.0}


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cycle_of_few_steps_is_positive(steps):
    assert all(0 < Schedule(epochs=1, rate=1.0, policy="one_cycle").rate_at(step, steps) <= 1 for step in range(steps))


# What training reaches --------------------------------------------------------------------------------------------------------------------


def test_natural_training_reads_nine_digits_in_ten(trained, digits):
    x, y = digits["test"].floats(), digits["test"].labels
    assert (trained(x).argmax(1) == y).float().mean() > 0.9


def test_pgd_training_at_no_radius_is_natural_training(digits):
    model = classifier()
    x, y = few(digits["train"], 64)
    naturally = natural.loss(natural.Params(), model, x, y, BALL, generator(0, "a"))
    losses = [pgd.loss(pgd.Params(eps_ratio=ratio), model, x, y, BALL, generator(0, "a")) for ratio in (1.0, 1e-2, 1e-5)]
    gaps = [(loss - naturally).item() for loss in losses]
    assert gaps[0] > gaps[1] > 0 and abs(gaps[2]) < 1e-5
    parameters = list(model.parameters())
    for one, other in zip(torch.autograd.grad(losses[2], parameters), torch.autograd.grad(naturally, parameters)):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-5)


def test_pgd_training_makes_robust(digits):
    """Accuracy under an attack that neither was trained on, at the radius of training."""
    from pipeline.attacks import Target, apgd

    x, y = few(digits["test"], 150)

    def robust(model):
        model.eval().requires_grad_(False)
        return (model(apgd.perturb(apgd.Params(steps=20), Target(model, BALL), x, y, generator(0, "a"))).argmax(1) == y).float().mean()

    one, other = (fit(classifier(CONVNET), digits["train"], epochs=6, kind=kind) for kind in ("natural", "pgd"))
    assert robust(other) > robust(one) + 0.15


def test_the_history_is_one_table(train, tmp_path):
    """Every row has the same columns, in one order, so that it can be written as it is."""
    _, history, _ = run("sodef", train, tmp_path / "c.safetensors")
    assert {tuple(row) for row in history} == {("phase", "epoch", "loss", "accuracy")}
    assert [(row["phase"], row["epoch"]) for row in history] == [(p, e) for p in ("features", "stability", "classifier") for e in (1, 2)]
    text = io.StringIO()
    csv.DictWriter(text, list(history[0])).writerows(history)
    assert len(text.getvalue().splitlines()) == 6
