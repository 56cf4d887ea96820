"""Training: what it promises, and that a run that was interrupted anywhere ends as if it had not been."""

import csv
import io
import logging
import math
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from small import BALL, CONVNET, SODEF, classifier, few, fit, method

from basin import checkpoint
from basin.config import kinds
from basin.config.schedule import Average, Schedule, Stopping
from basin.errors import Mistake
from basin.methods.attacks import pgd as attack
from basin.methods.training import natural, pgd
from basin.randomness import generator
from basin.stages import train as train_stage
from basin.threat.target import Target
from basin.training import optimise
from basin.training.averaging import Mean, measure_statistics
from basin.training.phase import Phase


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


def sodef_phases(model, train):
    """Three phases, Adam with and without amsgrad, a step between epochs that depends on the policy."""
    plan = {
        "features": {"epochs": 2, "rate": 0.01, "policy": "one_cycle"},
        "stability": {"epochs": 2, "batch": 32, "rate": 0.01, "amsgrad": True, "rows": 4},
        "classifier": {"epochs": 2, "rate": 0.01, "optimiser": "sgd"},
    }
    head = kinds.find("heads", "sodef")
    return head.phases(head.Schedules.model_validate(plan), model, method("pgd", steps=2), train)


def resnet_phases(model, train):
    """Batch normalisation's running statistics, and momentum."""
    schedule = Schedule(epochs=3, batch=50, optimiser="sgd", rate=0.05, policy="one_cycle", weight_decay=1e-4)
    loss = method("natural")
    return [Phase("natural", schedule, [model.backbone, model.head], lambda x, y, g: loss(model, x, y, g))]


def averaged_phases(model, train):
    """An exponential mean that goes back onto a constraint, then an equal one of weights with running statistics."""
    plan = {"features": {"epochs": 2, "rate": 0.01, "average": {"kind": "ema", "decay": 0.9}}} | dict.fromkeys(
        ("stability", "classifier"), {"epochs": 1}
    )
    head = kinds.find("heads", "sodef")
    features, *_ = head.phases(head.Schedules.model_validate(plan), model, method("free", replays=2), train)
    return [features, whole(model, "whole", epochs=3, average=Average(kind="swa", start=0.4))]


def stopped_phases(model, train):
    """What `run` says of robustness is best at the second epoch of the first phase, and always the same for a mean of weights."""
    stopping = Stopping(watch="robust", patience=2, images=30)
    return [
        whole(model, "stopped", epochs=6, stopping=stopping),
        whole(model, "both", epochs=6, stopping=stopping, average=Average(kind="ema", decay=0.5)),
        whole(model, "after", epochs=1),
    ]


def whole(model, name, **schedule):
    """A phase of all of a model, in three steps an epoch."""
    loss = method("natural")
    return Phase(name, Schedule(batch=50, rate=0.01, **schedule), [model.backbone, model.head], lambda x, y, g: loss(model, x, y, g))


RESNET = {"kind": "resnet", "depth": 8, "width": 4}
RUNS = {
    "sodef": (lambda: classifier(head=SODEF), sodef_phases, 6),
    "resnet": (lambda: classifier(RESNET), resnet_phases, 3),
    "averaged": (lambda: classifier(RESNET, SODEF), averaged_phases, 5),
    "stopped": (lambda: classifier(RESNET), stopped_phases, 4 + 3 + 1),
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

    def accuracy(attacked=0):
        if attacked:  # a number that overfits, and is a function of the model: it is highest after two epochs of three steps
            return -float(abs(model.backbone.stem[1].num_batches_tracked - 6))
        return (model(x).argmax(1) == y).float().mean().item()

    history = optimise.run(model, phases or its_phases(model, train), train, accuracy, (0, name), checkpoint, see)
    accuracy()  # a stage looks at the model before it keeps it, which must not change it
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


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:100], lambda b: b"", lambda b: b"\x00" * len(b), lambda b: b[:-1000], lambda b: b[:-5] + bytes([b[-5] ^ 1]) + b[-4:]],
)
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
    from basin.methods.attacks import apgd
    from basin.threat.target import Target

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


# What a phase ends with -------------------------------------------------------------------------------------------------------------------


def weights(phases_of, train, folder, backbone=None, accuracy=lambda attacked=0: 0.0):
    """The tensors that phases leave, the history, and the tensors at the end of every epoch as `watch` saw them."""
    model, seen = classifier(backbone or CONVNET), []

    def see(step, row):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    history = optimise.run(model, phases_of(model), train, accuracy, (0, "x"), folder / "c.safetensors", see)
    return model.state_dict(), history, seen


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("average", [Average(kind="ema", decay=0.0), Average(kind="swa", start=0.99)], ids=["ema", "swa"])
def test_a_mean_of_one_is_no_mean(average, train, tmp_path):
    """An exponential one that forgets all, and an equal one of the last epoch alone, are plain training bit for bit."""
    plain, mean = (weights(lambda model, a=a: [whole(model, "a", epochs=3, average=a)], train, tmp_path)[0] for a in (None, average))
    assert same(plain, mean)


def test_swa_is_the_mean_of_the_ends_of_the_last_epochs(train, tmp_path):
    ends, _, seen = weights(lambda model: [whole(model, "a", epochs=4, average=Average(kind="swa", start=0.5))], train, tmp_path)
    for name, tensor in ends.items():
        torch.testing.assert_close(tensor, (seen[2][name] + seen[3][name]) / 2)
    assert not same(ends, seen[3])


def test_ema_is_its_weighted_sum():
    """sum_t (1 - beta) beta^{n - t} theta_t over 1 - beta^n."""
    theta, beta, n = torch.nn.Parameter(torch.zeros(3)), 0.8, 6
    mean, values = Mean(Average(kind="ema", decay=beta), [theta]), torch.randn(n, 3, generator=generator(0, "theta"))
    for value in values:
        theta.data.copy_(value)
        mean.after_step()
    shares = (1 - beta) * beta ** torch.arange(n - 1.0, -1, -1) / (1 - beta**n)
    assert shares.sum().item() == pytest.approx(1)
    torch.testing.assert_close(mean.weights[0], shares @ values)


def test_a_mean_obeys_the_constraint_of_its_phase(train, tmp_path):
    model = classifier(RESNET, SODEF)
    optimise.run(model, averaged_phases(model, train)[:1], train, lambda: 0.0, (0, "x"), tmp_path / "c.safetensors")
    W = model.head.projection.weight
    torch.testing.assert_close(W @ W.T, torch.eye(len(W)), atol=1e-5, rtol=0)


def test_the_history_is_of_the_weights_that_a_phase_would_end_with(train, tmp_path):
    model = classifier(RESNET)
    x, y = few(train, 120)
    accuracy = lambda: (model(x).argmax(1) == y).float().mean().item()  # noqa: E731
    phases = [whole(model, "a", epochs=3, average=Average(kind="ema", decay=0.9))]
    history = optimise.run(model, phases, train, accuracy, (0, "x"), tmp_path / "c.safetensors")
    assert history[-1]["accuracy"] == accuracy()


def test_statistics_are_those_of_the_training_images_and_only_of_what_was_trained(train):
    model = classifier(RESNET).eval()
    norm, frozen = model.backbone.stem[1], model.backbone.blocks[0].residual[1]
    before, momentum = frozen.running_mean.clone(), norm.momentum
    measure_statistics(model, [model.backbone.stem], train, 60)
    with torch.no_grad():
        z = model.backbone.stem[0](model.normalise(train.floats()))
    torch.testing.assert_close(norm.running_mean, z.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, torch.stack([half.var((0, 2, 3)) for half in z.split(60)]).mean(0))
    assert torch.equal(frozen.running_mean, before) and norm.momentum == momentum and not norm.training


def test_no_batch_of_the_statistics_is_of_one_image(train):
    """Of 8x8 pixels one is left where a single image has no variance."""
    model = classifier({"kind": "resnet", "depth": 18, "width": 2}).eval()
    for batch in (1, 2):
        measure_statistics(model, [model.backbone], train.take(torch.arange(11)), batch)


def test_one_image_more_than_a_batch_moves_the_statistics_by_one_image(train):
    """Batches of one size: a last one of one image would count as much as the 64 before it."""
    model = classifier(RESNET).eval()
    some = train.take(torch.arange(65))
    measure_statistics(model, [model.backbone.stem], some, 64)
    with torch.no_grad():
        z = model.backbone.stem[0](model.normalise(some.floats()))
    torch.testing.assert_close(model.backbone.stem[1].running_mean, z.mean((0, 2, 3)), rtol=0.1, atol=0.02)


@pytest.mark.parametrize(("values", "patience", "epochs", "best"), [
    ([0.1, 0.5, 0.4, 0.4, 0.9], 2, 4, 2),  # what would come later is not seen
    ([0.1, 0.5, 0.4, 0.6, 0.5], 2, 5, 4),
    ([0.5, 0.5, 0.5, 0.9, 0.9], 2, 3, 1),  # an equal one is no better
    ([0.1, 0.2, 0.3, 0.4, 0.5], 1, 5, 5),
])  # fmt: skip
@pytest.mark.parametrize("watch", ["accuracy", "robust"])
def test_the_best_epoch_is_kept(values, patience, epochs, best, watch, train, tmp_path):
    coming = {"accuracy": iter(values), "robust": iter(values)}
    stopping = Stopping(watch=watch, patience=patience, images=7)
    asked = []

    def accuracy(attacked=0):
        asked.append(attacked)
        return next(coming["robust" if attacked else "accuracy"])

    ends, history, seen = weights(lambda model: [whole(model, "a", epochs=5, stopping=stopping)], train, tmp_path, accuracy=accuracy)
    assert len(history) == epochs and same(ends, seen[best - 1])
    assert set(asked) == ({0} if watch == "accuracy" else {0, 7})
    assert [row[watch] for row in history] == values[:epochs]


def test_what_one_phase_watches_is_an_empty_column_in_the_others(train, tmp_path):
    _, history, _ = run("stopped", train, tmp_path / "c.safetensors")
    assert {tuple(row) for row in history} == {("phase", "epoch", "loss", "accuracy", "robust")}
    assert [row["phase"] for row in history] == ["stopped"] * 4 + ["both"] * 3 + ["after"]
    assert [row["robust"] for row in history] == [-3.0, 0.0, -3.0, -6.0, -3.0, -3.0, -3.0, ""]


def test_robust_accuracy_is_that_of_the_first_images_under_attack(trained, digits):
    split = digits["validation"]
    x, y = few(split, 60)
    moved = attack.perturb(attack.Params(steps=10, step=0.25), Target(trained, BALL), x, y, generator(0, "accuracy"))
    by_hand = (trained(moved).argmax(1) == y).float().mean().item()
    assert train_stage.accuracy(trained, split, BALL, "cpu", attacked=60) == pytest.approx(by_hand, abs=1e-6)
    assert (
        by_hand
        < train_stage.accuracy(trained, split, BALL, "cpu")
        == pytest.approx((trained(split.floats()).argmax(1) == split.labels).float().mean().item(), abs=1e-6)
    )


@pytest.mark.parametrize("schedule", [{"average": Average(kind="ema", decay=0.9)}, {"stopping": Stopping(watch="accuracy", patience=3)}])
def test_what_is_not_finite_leaves_the_mean_and_the_best_as_they_were(schedule, train, tmp_path):
    model, phase = poisoned("gradient")
    bad = Phase("natural", Schedule(epochs=3, batch=40, rate=0.001, **schedule), phase.trained, phase.loss)
    with pytest.raises(Mistake, match="epoch 2, step 3: the loss or its gradient is not finite"):
        optimise.run(model, [bad], train, lambda: 0.0, (0, "head/x"), tmp_path / "c.safetensors")
    groups, progress = checkpoint.read(tmp_path / "c.safetensors")
    assert progress["epoch"] == 1 and groups["best"].keys() == groups["model"].keys()
    assert all(tensor.isfinite().all() for group in groups.values() for tensor in group.values())
    assert int(groups["mean"]["count"]) == (3 if "average" in schedule else 0)


def test_two_experiments_write_one_checkpoint(tmp_path):
    """They share the place of equal computations: each write is whole, and none fails because of another."""
    place = tmp_path / "backbone" / "one.safetensors"

    def write(number: int) -> None:
        checkpoint.write(place, {"model": {"w": torch.full((1000,), float(number))}}, {"epoch": number})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(400)))
    groups, progress = checkpoint.read(place)
    assert set(groups["model"]["w"].tolist()) == {float(progress["epoch"])} and [path.name for path in place.parent.iterdir()] == [
        place.name
    ]
