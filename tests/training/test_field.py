"""Training as the field does it: schedules are torch's own, the gradient is bounded, augmentation is for training alone, and AWP."""

import math

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save
from small import SODEF, classifier, few, method
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, SequentialLR

from basin.config import kinds
from basin.config.schedule import Schedule
from basin.randomness import generator
from basin.training import optimise
from basin.training.awp import Perturbed
from basin.training.phase import Phase

RESNET = {"kind": "resnet", "depth": 8, "width": 4}
METHODS = {"pgd": {"steps": 2}, "trades": {"steps": 2}, "mart": {"steps": 2}, "alp": {"steps": 2}, "fast": {}, "free": {"replays": 2}}
METHODS |= {"yopo": {"m": 2, "n": 1}, "natural": {}}


@pytest.fixture
def train(digits):
    return digits["validation"].take(torch.arange(120))


def sgd(rate=0.3):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def rates(scheduler, steps):
    for _ in range(steps):
        yield scheduler.optimizer.param_groups[0]["lr"]
        scheduler.optimizer.step()
        scheduler.step()


def ours(steps, **schedule):
    own = Schedule(epochs=20, rate=0.3, **schedule)
    return [own.rate_at(step, steps) for step in range(steps)]


def close(one, other):
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-12


@pytest.mark.parametrize("each", [1, 7])
def test_multi_step_is_torchs_own(each):
    theirs = rates(MultiStepLR(sgd(), [4 * each, 10 * each, 15 * each], gamma=0.2), 20 * each)
    assert close(ours(20 * each, policy="multi_step", milestones=[4, 0.5, 15], factor=0.2), theirs)
    assert len(set(ours(20 * each, policy="multi_step", milestones=[4, 0.5, 15], factor=0.2))) == 4


@pytest.mark.parametrize("each", [1, 7])
def test_cosine_is_torchs_own(each):
    assert close(ours(20 * each, policy="cosine"), rates(CosineAnnealingLR(sgd(), 20 * each), 20 * each))


def test_no_milestone_has_passed_at_the_first_step():
    schedule = Schedule(epochs=1, rate=0.3, policy="multi_step")
    assert [schedule.rate_at(step, 20) for step in range(20)] == [0.3] * 20


@pytest.mark.parametrize("policy", ["constant", "cosine", "multi_step"])
def test_a_warm_up_is_torchs_own(policy):
    (optimiser, steps, up) = (sgd(), 140, 21)
    rising = LinearLR(optimiser, start_factor=1 / (up + 1), total_iters=up)
    after = {
        "constant": lambda: LinearLR(optimiser, start_factor=1.0, total_iters=1),
        "cosine": lambda: CosineAnnealingLR(optimiser, steps - up),
        "multi_step": lambda: MultiStepLR(optimiser, [70 - up, 105 - up], gamma=0.1),
    }
    theirs = list(rates(SequentialLR(optimiser, [rising, after[policy]()], milestones=[up]), steps))
    assert close(ours(steps, policy=policy, warmup=3), theirs)
    assert max(theirs) == pytest.approx(0.3) and theirs[0] == pytest.approx(0.3 / 22)


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        ({"policy": "one_cycle", "warmup": 1}, "one_cycle rises by itself. Set it to 0, or choose another policy."),
        ({"warmup": 4}, "takes all epochs. Give it fewer."),
        ({"milestones": [2.5]}, "an epoch is a whole number. Give whole epochs, or shares of them below 1."),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(schedule, text):
    with pytest.raises(ValidationError) as error:
        Schedule(epochs=4, **schedule)
    (one,) = error.value.errors()
    assert one["msg"] == text


def phases(model, kind="pgd", **schedule):
    loss = method(kind, **METHODS[kind])
    schedule = Schedule(**({"epochs": 2, "batch": 40, "rate": 0.02, "optimiser": "sgd"} | schedule))
    return [Phase(kind, schedule, [model.backbone, model.head], lambda x, y, g: loss(model, x, y, g))]


def trained(train, folder, kind="pgd", build=lambda: classifier(RESNET), watch=lambda step, row: None, augment=None, **schedule):
    model = build()
    more = {"augment": augment} if augment else {}
    path = folder / "c.safetensors"
    optimise.run(model, phases(model, kind, **schedule), train, lambda: 0.0, (0, "x"), path, watch, **more)
    return save(model.state_dict())


def test_the_gradient_of_a_step_is_clipped_to_the_norm(train, tmp_path):
    """One step of plain descent: with a norm that is never reached the same bytes, with a small one a move of that length at most."""
    model, seen = classifier(), []
    before = [p.detach().clone() for p in model.parameters()]
    plan = phases(model, "natural", epochs=1, batch=120, rate=1.0, clip=1e-3)
    optimise.run(model, plan, train, lambda: 0.0, (0, "x"), tmp_path / "c.safetensors", lambda step, row: seen.append(row))
    moved = math.sqrt(sum(float((p.detach() - old).pow(2).sum()) for p, old in zip(model.parameters(), before)))
    assert moved == pytest.approx(1e-3 * 1.9, rel=1e-3)  # Nesterov's first step is (1 + momentum) times the gradient
    assert trained(train, tmp_path, "natural", clip=1e6) == trained(train, tmp_path, "natural")


@pytest.mark.parametrize("kind", ["natural", "pgd", "fast", "free"])
def test_smoothed_labels_are_an_even_mixture(kind, digits):
    model, (x, y) = classifier(), few(digits["test"], 20)
    loss = method(kind, **METHODS[kind], smoothing=0.3)
    plain = method(kind, **METHODS[kind])
    parts = [next(iter(one)) if not torch.is_tensor(one := f(model, x, y, generator(0, "x"))) else one for f in (loss, plain)]
    assert not torch.equal(*parts)
    if kind in ("natural", "free"):
        log_p = model(x).log_softmax(1)
        expected = 0.7 * parts[1] + 0.3 * -log_p.mean()
        torch.testing.assert_close(parts[0], expected)


@pytest.mark.parametrize("kind", ["trades", "mart", "alp", "yopo"])
def test_a_method_without_smoothing_refuses_it(kind):
    with pytest.raises(ValidationError, match="unknown key"):
        kinds.choose("training", {"kind": kind, "smoothing": 0.1})


# Augmentation -----------------------------------------------------------------------------------------------------------------------------


def test_augmentation_is_seen_by_losses_alone(train, tmp_path):
    """Each batch goes through it once; the accuracy, statistics of a mean and what a head keeps of the images do not."""
    batches, heard = [], []

    def marked(images, draws):
        batches.append(len(images))
        return torch.full_like(images, 0.5)

    model = classifier(RESNET)

    def loss(x, y, g):
        heard.append(bool((x == 0.5).all()))
        return torch.nn.functional.cross_entropy(model(x), y)

    schedule = Schedule(epochs=2, batch=50, rate=0.01, average={"kind": "ema", "decay": 0.5})
    plan = [Phase("a", schedule, [model.backbone, model.head], loss)]
    inputs = []
    model.backbone.register_forward_pre_hook(lambda module, args: inputs.append(args[0]) if not torch.is_grad_enabled() else None)
    x, y = few(train, 30)

    def accuracy():
        with torch.no_grad():
            return (model(x).argmax(1) == y).float().mean().item()

    optimise.run(model, plan, train, accuracy, (0, "x"), tmp_path / "c.safetensors", augment=marked)
    assert batches == [50, 50, 20] * 2 and heard == [True] * 6
    assert len(inputs) == 2 * (3 + 1) and not any((one == one[0, 0, 0, 0]).all() for one in inputs)


def test_labels_go_with_their_images(train, tmp_path):
    seen = []
    model = classifier()

    def loss(x, y, g):
        seen.append((x, y))
        return torch.nn.functional.cross_entropy(model(x), y)

    def mirrored(images, draws):
        return images.flip(3)

    plan = [Phase("a", Schedule(epochs=1, batch=50, rate=0.01), [model.backbone, model.head], loss)]
    optimise.run(model, plan, train, lambda: 0.0, (0, "x"), tmp_path / "c.safetensors", augment=mirrored)
    images = {one.numpy().tobytes(): int(label) for one, label in zip(train.floats(slice(0, 120)), train.labels)}
    assert all(images[one.flip(2).contiguous().numpy().tobytes()] == int(label) for x, y in seen for one, label in zip(x, y))


# Adversarial weight perturbation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", METHODS)
def test_awp_with_gamma_0_is_plain_training(kind, train, tmp_path):
    plain = trained(train, tmp_path, kind, epochs=1)
    assert trained(train, tmp_path, kind, epochs=1, awp={"gamma": 0}) == plain
    assert trained(train, tmp_path, kind, epochs=1, awp={"warmup": 1}) == plain
    assert trained(train, tmp_path, kind, epochs=1, awp={"gamma": 0.01}) != plain


def same_points(kind, x, y):
    """What a network sees where gradients reach its weights: in the ascent, and in the step."""
    model, seen = classifier(), ([], [])
    where = [0]

    def network(images):
        seen[where[0]].append(images.detach().clone())
        return model(images)

    loss = method(kind, **METHODS[kind])
    own = [p.detach().clone() for p in model.parameters()]
    perturbed = Perturbed(Schedule(epochs=1, awp={"gamma": 0.05}).awp, list(model.parameters()))

    class Both:  # an iterator that says whose turn it is
        def __init__(self, number):
            self.number, self.losses = number, None

        def __iter__(self):
            return self

        def __next__(self):
            where[0] = self.number
            if self.losses is None:
                losses = loss(network, x, y, draws)
                self.losses = iter([losses]) if torch.is_tensor(losses) else losses
            return next(self.losses)

    draws, numbers = generator(0, "draws"), iter((0, 1))
    for step in perturbed.losses(lambda: Both(next(numbers)), 0, draws):
        for p, w in zip(model.parameters(), own):
            length = float((p.detach() - w).norm() / (w.norm() if p.ndim > 1 else 1))
            assert length == pytest.approx(0.05 if p.ndim > 1 else 0, abs=1e-6)
        step.backward()
        perturbed.undo()
        assert all(torch.equal(p, w) for p, w in zip(model.parameters(), own))
    return seen


@pytest.mark.parametrize("kind", METHODS)
def test_the_perturbation_is_gamma_long_the_points_are_those_just_found_and_it_is_gone_after_each_step(kind, digits):
    x, y = few(digits["test"], 20)
    ascent, step = same_points(kind, x, y)
    assert torch.equal(ascent[-1], step[-1])
    if kind in ("pgd", "fast", "mart", "alp", "trades"):
        assert len(step) < len(ascent)  # nothing is attacked twice


def test_the_step_is_the_gradient_at_the_perturbed_weights(digits):
    x, y = few(digits["test"], 20)
    model = classifier()
    ce = torch.nn.functional.cross_entropy
    weights = list(model.parameters())
    g = torch.autograd.grad(ce(model(x), y), weights)
    own = [w.detach().clone() for w in weights]
    perturbed = Perturbed(Schedule(epochs=1, awp={"gamma": 0.1}).awp, weights)
    (loss,) = perturbed.losses(lambda: ce(model(x), y), 0, generator(0, "x"))
    for w, old, slope in zip(weights, own, g):
        expected = old + 0.1 * old.norm() * slope / slope.norm() if w.ndim > 1 else old
        torch.testing.assert_close(w.detach(), expected)
    torch.testing.assert_close(loss, ce(model(x), y))
    assert loss > ce(classifier()(x), y)


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


@pytest.mark.parametrize(
    ("kind", "build"),
    [
        ("pgd", lambda: classifier(RESNET)),
        ("free", lambda: classifier(RESNET, SODEF)),
        ("trades", lambda: classifier({"kind": "distribution", "of": RESNET})),
    ],
)
def test_with_everything_at_once_an_interrupted_run_ends_as_one_that_was_not(kind, build, train, tmp_path):
    flips = kinds.choose("augmentations", {"kind": "flip"})

    def augment(images, draws):
        return flips.module.augment(flips.params, images, draws)

    def kill(step, row):
        if step == 2:
            raise Killed

    schedule = {"epochs": 3, "policy": "cosine", "warmup": 1, "clip": 0.5, "awp": {"gamma": 0.01, "warmup": 1}}
    schedule["average"] = {"kind": "ema", "decay": 0.9}
    whole = trained(train, tmp_path, kind, build, augment=augment, **schedule)
    with pytest.raises(Killed):
        trained(train, tmp_path, kind, build, kill, augment=augment, **schedule)
    assert trained(train, tmp_path, kind, build, augment=augment, **schedule) == whole
    assert trained(train, tmp_path, kind, build, **schedule) != whole
