"""Attacks by others, and minimum-norm ones: known margins, and none of what is known to go wrong around pyautoattack and Foolbox."""

import logging
import random
import sys

import numpy as np
import pytest
import torch
from small import Linear, two_of_five
from torch.nn.functional import one_hot

from basin.config.kinds import choose
from basin.methods.attacks import autoattack
from basin.randomness import generator
from basin.threat import foreign
from basin.threat.ball import TOLERANCE, ThreatModel
from basin.threat.target import Target

BALLS = [ThreatModel(norm="linf", eps=0.08), ThreatModel(norm="l2", eps=0.2)]
FAST = [
    ("autoattack", {"version": "custom", "attacks": ["apgd-ce", "fab-t"]}),
    ("fab", {"targets": 4}),
    ("cw", {"steps": 100, "searches": 5, "rate": 0.1}),
    ("boundary", {"queries": 1000}),
]
balls = pytest.mark.parametrize("ball", BALLS, ids=str)
fast = pytest.mark.parametrize(("kind", "settings"), FAST, ids=[kind for kind, _ in FAST])
pyautoattacks = pytest.mark.parametrize(
    ("kind", "settings"), [pytest.param(*FAST[0], marks=pytest.mark.slow), FAST[1]], ids=["autoattack", "fab"]
)


@pytest.fixture
def linear():
    """Images away from 0 and 1, labelled by a linear classifier; their distances to the boundary spread over the radii."""
    model, draw = two_of_five(), torch.Generator().manual_seed(1)
    along = (torch.rand(60, 1, generator=draw) - 0.5) * 0.4 * (model.W[0] - model.W[1]).sign()
    x = (0.5 + along + 0.1 * (torch.rand(60, 16, generator=draw) - 0.5)).view(60, 1, 4, 4)
    return model, x, model(x).argmax(1)


def margin(model: Linear, x, y, ball: ThreatModel):
    """The distance to the nearest other class: (z_y - z_j) / ||w_y - w_j||, in the dual norm."""
    z, p = model(x), 1 if ball.norm == "linf" else 2
    widths = (model.W[y][:, None] - model.W[None]).norm(p, dim=2)
    return ((z.gather(1, y[:, None]) - z) / widths).scatter(1, y[:, None], torch.inf).amin(1)


def attacked(kind: str, settings: dict, network, ball: ThreatModel, x, y, seed: int = 0):
    choice = choose("attacks", {"kind": kind, **settings})
    return choice.module.perturb(choice.params, Target(network, ball), x, y, generator(seed, "attack"))


# Known margins ----------------------------------------------------------------------------------------------------------------------------


@balls
@fast
def test_none_breaks_an_image_beyond_its_margin(kind, settings, ball, linear):
    model, x, y = linear
    found = attacked(kind, settings, model, ball, x, y)
    assert ball.distance(found, x).max() <= ball.eps + TOLERANCE
    assert not (model(found).argmax(1) != y)[margin(model, x, y, ball) > ball.eps + 1e-5].any()


@balls
@pytest.mark.parametrize(
    ("kind", "settings", "reach"),
    [
        pytest.param("autoattack", FAST[0][1], 0.9999, marks=pytest.mark.slow),
        ("fab", FAST[1][1], 0.99),
        pytest.param("boundary", {"queries": 2000}, 0.85, marks=pytest.mark.slow),
    ],
    ids=["autoattack", "fab", "boundary"],
)
def test_every_image_within_its_reach_is_broken(kind, settings, reach, ball, linear):
    model, x, y = linear
    within = margin(model, x, y, ball) < reach * ball.eps
    assert 0.2 < within.float().mean() < 0.95
    assert (model(attacked(kind, settings, model, ball, x, y)).argmax(1) != y)[within].all()


@balls
def test_fab_goes_towards_the_nearest_class_where_that_is_asked_for(ball):
    """Of a linear network in which that is often not the likeliest: the weights of two classes are four times as large."""
    ball, draw = ball.of_radius(ball.eps / 3), torch.Generator().manual_seed(2)
    W = torch.randn(5, 16, generator=draw) * torch.tensor([1.0, 1.0, 1.0, 4.0, 4.0])[:, None]
    x = 0.2 + 0.6 * torch.rand(300, 1, 4, 4, generator=draw)
    model = Linear(W, 0.3 - (x.flatten(1) @ W.T).median(0).values)
    y = model(x).argmax(1)
    within = margin(model, x, y, ball) < 0.98 * ball.eps
    holds = {o: model(attacked("fab", {"targets": 1, "order": o}, model, ball, x, y)).argmax(1) == y for o in ("likeliest", "nearest")}
    assert not holds["nearest"][within].any() and holds["likeliest"][within].sum() >= 5


@balls
@pytest.mark.parametrize("restarts", [1, 2])
def test_fab_breaks_what_its_authors_own_loop_over_classes_breaks_and_leaves_the_rest_alone(restarts, ball, linear):
    from pyautoattack.fab_pt import FABAttack_PT

    model, x, y = linear
    found = attacked("fab", {"targets": 4, "restarts": restarts}, model, ball, x, y)
    theirs = FABAttack_PT(model, foreign.NORM[ball.norm], restarts, 100, ball.eps, targeted=True, device=x.device, n_target_classes=4)
    fell = model(found).argmax(1) != y
    assert torch.equal(fell, model(theirs.perturb(x, y)).argmax(1) != y) and 0.2 < fell.float().mean() < 0.95
    assert torch.equal(found[~fell], x[~fell])


def test_cw_finds_the_nearest_point_in_l2(linear):
    model, x, y = linear
    far = ThreatModel(norm="l2", eps=2.0)
    found = attacked("cw", {}, model, far, x, y)
    nearest = margin(model, x, y, far)
    assert (model(found).argmax(1) != y).all()
    beyond = far.distance(found, x) - nearest
    assert (beyond / nearest)[nearest > 0.15].max() < 0.03
    assert beyond.max() < 0.05  # Adam's first steps overshoot a boundary that is nearer than they are long


def test_cw_in_linf_gives_a_point_of_the_ball(linear):
    """The nearest in L2 lies outside for some images; what is given is broken where its projection is."""
    model, x, y = linear
    fell = model(attacked("cw", {}, model, BALLS[0], x, y)).argmax(1) != y
    assert fell[margin(model, x, y, BALLS[0]) < 0.5 * BALLS[0].eps].float().mean() > 0.9


@pytest.mark.slow
def test_cw_is_as_near_as_foolboxs(trained, digits):
    import foolbox

    x, y = digits["test"].floats(slice(0, 32)), digits["test"].labels[:32]
    x, y = (part[trained(x).argmax(1) == y] for part in (x, y))
    theirs = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=6, steps=100, stepsize=0.05, initial_const=0.1, abort_early=False)
    there = theirs.run(foolbox.PyTorchModel(trained, bounds=(0, 1), device="cpu"), x, y)
    far = ThreatModel(norm="l2", eps=8.0)
    here = attacked("cw", {"searches": 6, "steps": 100, "rate": 0.05, "c": 0.1}, trained, far, x, y)
    torch.testing.assert_close(far.distance(here, x), far.distance(there, x), rtol=0.02, atol=0)


def test_boundary_asks_for_decisions_alone(trained, digits):
    """Scores that say nothing but the class lead to the same broken points."""
    x, y = digits["test"].floats(slice(0, 40)), digits["test"].labels[:40]
    networks = trained, lambda x: one_hot(trained(x).argmax(1), 10).float()
    one, other = (attacked("boundary", {"queries": 500}, network, BALLS[0], x, y) for network in networks)
    fell = trained(one).argmax(1) != y
    assert fell.any() and torch.equal(one[fell], other[fell])


def test_boundary_asks_each_image_no_more_than_its_queries_and_a_step(linear):
    model, x, y = linear
    asked = []

    def counted(images):
        asked.append(len(images))
        return model(images)

    attacked("boundary", {"queries": 400, "draws": 10, "starts": 20}, counted, ThreatModel(norm="l2", eps=0.01), x, y)
    assert 300 < len(asked) < 400 + 10 * 10 + 20 + 12


# What others' code does, and ours must not let through ------------------------------------------------------------------------------------


def global_state():
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        [part.tolist() if hasattr(part, "tolist") else part for part in np.random.get_state()],  # noqa: NPY002
    )


class Breaks:
    """A network that gives up after a number of passes."""

    def __init__(self, network, passes: int):
        self.network, self.left = network, passes

    def __call__(self, x):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of memory")
        return self.network(x)


@pyautoattacks
def test_global_generators_are_as_before_also_after_an_error(kind, settings, linear):
    model, x, y = linear
    before = global_state()
    attacked(kind, settings, model, BALLS[0], x, y)
    assert global_state() == before
    with pytest.raises(RuntimeError, match="out of memory"):
        attacked(kind, settings, Breaks(model, 12), BALLS[0], x, y)
    assert global_state() == before


@pyautoattacks
def test_a_call_is_silent_and_leaves_tracer_and_mode(kind, settings, trained, digits, caplog, capfd):
    x, y = digits["test"].floats(slice(0, 20)), digits["test"].labels[:20]
    seen: list = []
    sys.settrace(tracer := lambda *_: None)
    try:
        with caplog.at_level(logging.DEBUG):
            attacked(kind, settings, trained, BALLS[0], x, y)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(None)
    assert not trained.training and not seen and caplog.records == []
    assert capfd.readouterr() == ("", "")


@fast
def test_runs_under_deterministic_algorithms_on_frozen_parameters(kind, settings, trained, digits):
    x, y = digits["test"].floats(slice(0, 20)), digits["test"].labels[:20]
    assert not any(p.requires_grad for p in trained.parameters())
    torch.use_deterministic_algorithms(True)
    try:
        attacked(kind, settings, trained, BALLS[0], x, y)
    finally:
        torch.use_deterministic_algorithms(False)


def test_images_survive_a_network_that_returns_a_part_of_them():
    """Square writes into the logits that it is given."""
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    own, y = x.clone(), x.flatten(1)[:, :5].argmax(1)
    attacked("autoattack", {"version": "custom", "attacks": ["square"]}, lambda x: x.flatten(1)[:, :5], BALLS[0], x, y)
    assert torch.equal(x, own)


def test_a_sealed_network_has_the_same_logits_and_gradient(trained, digits):
    x = digits["test"].floats(slice(0, 8)).requires_grad_()
    z, sealed = trained(x), foreign.sealed(trained)(x)
    torch.testing.assert_close(z, sealed, rtol=1e-6, atol=1e-6)
    for k in (0, 3):  # twice through one pass, as FAB does
        one, other = (torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)[0] for logits in (z, sealed))
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * other.abs().max().item())


# AutoAttack -------------------------------------------------------------------------------------------------------------------------------


def noisy(model, sigma: float = 3.0):
    """The classifier with noise on its logits, from torch's global generator."""
    return lambda x: (z := model(x)) + sigma * torch.randn(z.shape)


def test_two_passes_that_differ_are_what_makes_a_network_random(trained, digits):
    x = digits["test"].floats(slice(0, 8))
    assert not autoattack.differs(trained, x)
    assert not autoattack.differs(noisy(trained, 1e-6), x)
    assert autoattack.differs(noisy(trained), x)


@pytest.mark.slow
def test_a_random_network_gets_rand_and_never_the_standard_loop(trained, digits, caplog, monkeypatch):
    import pyautoattack

    x, y = digits["test"].floats(slice(0, 40)), digits["test"].labels[:40]
    monkeypatch.setattr(pyautoattack.AutoAttack, "run_standard_evaluation", None)
    monkeypatch.setattr("pyautoattack.square.SquareAttack.perturb", None)
    found = attacked("autoattack", {"version": "standard"}, noisy(trained), BALLS[0], x, y)
    assert BALLS[0].distance(found, x).max() <= BALLS[0].eps + TOLERANCE
    assert "the network is random, passes over the same images differ; running rand instead of standard" in caplog.text


@pytest.mark.slow
def test_points_for_a_random_network_hold_up_in_fresh_draws(trained, digits):
    """AutoAttack's own loop drops an image when one draw misreads it, and returns the point of that draw: mostly a weak one."""
    from pyautoattack import AutoAttack

    x, y = digits["test"].floats(slice(0, 60)), digits["test"].labels[:60]
    torch.manual_seed(0)  # of the noise
    network = noisy(trained)
    with foreign.seeded(generator(0, "theirs")) as seed:
        theirs = AutoAttack(foreign.sealed(network), eps=BALLS[0].eps, seed=seed, version="rand").run_standard_evaluation(x, y)[0]
    ours = attacked("autoattack", {"version": "rand"}, network, BALLS[0], x, y)
    accuracy = [(torch.stack([network(points).argmax(1) for _ in range(60)]) == y).float().mean() for points in (ours, theirs)]
    assert accuracy[0] < accuracy[1] - 0.05


@pytest.mark.slow
def test_robust_accuracy_is_that_of_the_authors_loop(trained, digits):
    from pyautoattack import AutoAttack

    x, y = digits["test"].floats(slice(0, 60)), digits["test"].labels[:60]
    ball, names = ThreatModel(norm="linf", eps=0.03), ["apgd-ce", "fab-t"]
    with foreign.seeded(generator(0, "theirs")) as seed:
        attack = AutoAttack(foreign.sealed(trained), eps=ball.eps, seed=seed, version="custom", attacks=names)
        attack.apgd.n_restarts = 5
        theirs = attack.run_standard_evaluation(x, y)[0]
    ours = attacked("autoattack", {"version": "custom", "attacks": names}, trained, ball, x, y)
    held = [trained(points).argmax(1) == y for points in (ours, theirs)]
    assert 0.1 < held[0].float().mean() < 0.95
    assert (held[0] != held[1]).sum() <= 1  # another seed


@pytest.mark.parametrize(("version", "classes"), [("plus", 2), ("standard", 3)])
def test_on_few_classes_what_is_defined_is_run_by_the_authors_code(version, classes, linear, monkeypatch):
    """Square's 5,000 queries are left out: they take half a minute."""
    model, x, y = linear
    monkeypatch.setattr("pyautoattack.square.SquareAttack.perturb", lambda self, x, y: x)
    few = Linear(model.W[:classes], model.b[:classes])
    found = attacked("autoattack", {"version": version}, few, BALLS[0], x, y)
    clear = (margin(few, x, y, BALLS[0]) - BALLS[0].eps).abs() > 1e-4
    assert torch.equal((few(found).argmax(1) != y)[clear], (margin(few, x, y, BALLS[0]) < BALLS[0].eps)[clear])


@pytest.mark.parametrize(("classes", "ran"), [(2, ["ce"]), (3, ["ce", "dlr"])])
def test_a_random_network_of_few_classes_gets_what_rand_has_for_them(classes, ran, linear, monkeypatch):
    model, x, y = linear
    losses = []
    monkeypatch.setattr("pyautoattack.autopgd_base.APGDAttack.perturb", lambda self, x, y, **_: losses.append(self.loss) or x)
    attacked("autoattack", {}, noisy(Linear(model.W[:classes], model.b[:classes])), BALLS[0], x, y)
    assert losses == ran


def test_the_versions_are_the_authors():
    from pyautoattack import AutoAttack

    for version, attacks in autoattack.VERSIONS.items():
        assert AutoAttack(lambda x: x, version=version).attacks_to_run == attacks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attacks": ["fab", "square"]}, "version standard has no fab. Use version: custom."),
        ({"version": "custom"}, "version custom has no attacks of its own. Give attacks."),
    ],
)
def test_attacks_are_those_of_the_version(settings, message):
    with pytest.raises(ValueError, match=message):
        autoattack.Params(**settings)
