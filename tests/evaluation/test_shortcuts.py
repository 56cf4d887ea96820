"""What saves passes may not save a verdict: images have to be earned, a quicker function searches and never judges."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from small import BALL, Linear, classifier, few, fit, two_of_five
from torch import nn
from waits import Waits

from basin.config.kinds import choose
from basin.config.suite import IN_FULL, READY, Suite, ready
from basin.evaluation import diagnostics, robustness, search
from basin.evaluation.cascade import FEWEST, Evaluation
from basin.evaluation.outcomes import pack, unpack
from basin.evaluation.subject import subject
from basin.evaluation.ways import Attempt
from basin.randomness import generator
from basin.threat import target as searches
from basin.threat.ball import ThreatModel
from basin.threat.target import Target, gradient

STEP = choose("attacks", {"kind": "fgsm"})  # exact on what is linear
N = 200


@pytest.fixture
def linear():
    """Images of a linear model whose margins are spread over twice the radius, the easy ones anywhere among them."""
    model = two_of_five().eval()
    along = (torch.rand(N, 1, generator=torch.Generator().manual_seed(1)) - 0.5) * 0.4 * (model.W[0] - model.W[1]).sign()
    x = (0.5 + along).view(N, 1, 4, 4)
    return model, x, model(x).argmax(1)


def run(linear, checkpoint=None, **attempts: Attempt):
    model, x, y = linear
    return Evaluation(model, None, BALL, (0, "shortcuts"), 64, checkpoint).run(torch.arange(N), x, y, attempts)


# Earned images ----------------------------------------------------------------------------------------------------------------------------


def test_what_is_probed_ends_with_the_first_part_that_loses_nothing(linear):
    """Closest to falling first, so nothing that would fall is spared; the images that are sure to hold are not asked about."""
    whole, probed = run(linear, step=Attempt(STEP)), run(linear, step=Attempt(STEP, probe=0.1))
    assert torch.equal(whole.share, probed.share)
    given, spared = probed.spared["step"]
    assert given + spared == len(whole.alive) + (whole.share == 0).sum() == N
    lost = int((probed.share == 0).sum())
    assert lost <= given <= lost + 2 * FEWEST < N and probed.passes < whole.passes


def test_a_probe_that_finds_nothing_costs_its_part_alone(linear):
    first = run(linear, step=Attempt(STEP))
    both = run(linear, step=Attempt(STEP), again=Attempt(STEP, probe=0.1))
    held = len(first.alive)
    assert both.spared == {"again": (FEWEST, held - FEWEST)} and both.after["again"] == both.after["step"]
    assert both.passes - first.passes == FEWEST * (first.passes - N) // N


def test_few_images_are_one_part(linear):
    model, x, y = linear
    found = Evaluation(model, None, BALL, (0, "few"), 64).run(torch.arange(8), x[:8], y[:8], {"step": Attempt(STEP, probe=0.1)})
    assert found.spared == {"step": (8, 0)}


@pytest.mark.parametrize("again", [True, False])
def test_what_has_to_be_earned_runs_where_the_other_took_something(again, linear):
    """The second step finds nothing after the first: what waits for it is not run; what waits for the first is."""
    found = run(linear, first=Attempt(STEP), second=Attempt(STEP), third=Attempt(STEP, earned="second" if again else "first"))
    assert found.taken("first") > 0 and found.taken("second") == 0
    assert list(found.after) == (["first", "second"] if again else ["first", "second", "third"])
    assert found.spared == ({"third": (0, len(found.alive))} if again else {})


def test_what_was_spared_is_in_a_checkpoint(linear, tmp_path):
    _, x, y = linear
    found = run(linear, step=Attempt(STEP, probe=0.1))
    (path := tmp_path / "checkpoint.safetensors").write_bytes(pack(found, 1, 1))
    assert {name: tuple(counts) for name, counts in unpack(path, torch.arange(N), x, y)[0].spared.items()} == found.spared


class Flat(Linear):
    """Logits whose derivative is zero and whose value is the linear model's: the gradient is in doubt."""

    def forward(self, x):
        return super().forward(x).detach() + 0 * x.flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("name", ["standard", "adaptive"])
def test_a_gradient_in_doubt_spares_no_image(name, linear):
    model, x, y = linear
    flat = Flat(model.W, model.b).eval()
    asked = ready(name)
    if asked.adaptive:
        few = asked.adaptive.model_copy(update={"steps": 2, "queries": 20, "doublings": 0, "targets": 1})
        asked = asked.model_copy(update={"adaptive": few})
    result = robustness.evaluate(flat, None, x[:40], y[:40], BALL, asked, (0, "doubt"))
    assert result.declared.blind and result.outcomes.spared == {}
    assert result.worst_case == 0 or result.attacks["square"] < result.clean


class Tagged(Linear):
    """Logits scaled by what the first pixel says, and a gradient that knows that pixel alone: images that would fall look far from it."""

    def forward(self, x):
        return super().forward(x.detach()) * (4 * x[:, 0, 0, :1]).exp()


@pytest.fixture
def tagged(linear):
    """The linear model without its first pixel, images that are clearly within or beyond the radius, and which of them fall."""
    model, x, y = linear
    model.W[:, 0] = 0
    far = model.margin(x, y) / BALL.eps
    clear = (far > 0.4) & (far < 0.9) | (far > 1.1)
    x, y, falls = x[clear], y[clear], far[clear] < 1
    x[:, 0, 0, 0] = torch.where(falls, 0.8, 0.2)
    return model, x, y, falls


DOUBTED = {
    "attacks": {"pgd": {"kind": "pgd", "random_start": False}, "square": {"kind": "square", "queries": 500}},
    "probe": {"square": 0.05},
}


@pytest.mark.parametrize("honest", [True, False])
def test_what_was_spared_is_attacked_where_a_flag_speaks_for_a_blind_search(honest, tagged):
    model, x, y, falls = tagged
    judged = (Linear if honest else Tagged)(model.W, model.b).eval()
    result = robustness.evaluate(judged, None, x, y, BALL, Suite.model_validate(DOUBTED), (0, "doubt"))
    held = int((~falls).sum()) if honest else len(x)
    assert not result.declared.blind and result.outcomes.spared == {"square": (FEWEST, held - FEWEST)}
    assert torch.equal(result.outcomes.share == 0, falls)
    assert list(result.attacks) == ["pgd", "square"] + ["square in full"] * (not honest)
    assert ("large-radius-holds" in result.flags) == (not honest)


@pytest.mark.parametrize("before", ["square", "square in full", "again in full"])
def test_where_it_was_interrupted_it_goes_on(before, tagged, tmp_path, monkeypatch):
    model, x, y, _ = tagged
    more = {"attacks": DOUBTED["attacks"] | {"again": {"kind": "square", "queries": 20}}, "probe": {"square": 0.05, "again": 0.05}}
    judged, suite = Tagged(model.W, model.b).eval(), Suite.model_validate(more)
    whole = robustness.evaluate(judged, None, x, y, BALL, suite, (0, "doubt"))
    path, own = tmp_path / "checkpoint.safetensors", Evaluation.attack

    def interrupted(evaluation, outcomes, name, attempt):
        if name == before:
            raise KeyboardInterrupt
        own(evaluation, outcomes, name, attempt)

    monkeypatch.setattr(Evaluation, "attack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        robustness.evaluate(judged, None, x, y, BALL, suite, (0, "doubt"), checkpoint=path)
    monkeypatch.setattr(Evaluation, "attack", own)
    found = robustness.evaluate(judged, None, x, y, BALL, suite, (0, "doubt"), checkpoint=path)
    assert torch.equal(found.outcomes.points, whole.outcomes.points) and found.attacks == whole.attacks
    assert found.outcomes.passes == whole.outcomes.passes and found.flags == whole.flags


class Noisy(Linear):
    """Its logits are drawn about those of the linear model."""

    def forward(self, x):
        z = super().forward(x)
        return z + 0.3 * z.std() * torch.randn_like(z)


def test_a_random_model_spares_no_image(linear):
    """Which image is closest to falling is noise there."""
    model, x, y = linear
    asked = Suite.model_validate({"attacks": {"margin": {"kind": "margin"}, "again": {"kind": "fgsm"}}, "probe": {"again": 0.1}})
    result = robustness.evaluate(Noisy(model.W, model.b).eval(), None, x, y, BALL, asked, (0, "noisy"))
    assert result.declared.randomised and result.outcomes.spared == {} and list(result.attacks) == ["margin", "again"]


def test_thorough_spares_no_image_and_ends_where_the_shortcuts_do(linear):
    model, x, y = linear
    attacks = {"margin": {"kind": "margin"}, "square": {"kind": "square", "queries": 20}}
    suites = [Suite.model_validate({"attacks": attacks, "probe": {"square": 0.1}, "thorough": thorough}) for thorough in (False, True)]
    results = [robustness.evaluate(model, None, x, y, BALL, suite, (0, "x")) for suite in suites]
    assert [list(one.outcomes.spared) for one in results] == [["square"], []]
    assert torch.equal(*(one.outcomes.share for one in results))


def test_the_ready_made_suites_probe_attacks_of_their_own():
    for name in READY:
        assert ready(name).probe.keys() <= ready(name).attacks.keys()


# The quicker function ---------------------------------------------------------------------------------------------------------------------


class Shifted(nn.Module):
    """A model's logits with one class raised: it calls broken what the model reads rightly, and the other way round."""

    def __init__(self, model: nn.Module, by: float):
        super().__init__()
        self.model, self.by = model, by

    def forward(self, x):
        z = self.model(x)
        return z + self.by * (torch.arange(z.shape[1]) == 1)


@pytest.mark.parametrize("kind", ["margin", "pma", "a3", "apgd"])
@pytest.mark.parametrize("by", [-0.3, 0.3])
def test_an_image_leaves_on_the_judges_word_alone(kind, by, linear):
    """Of a linear model it is known which images fall; a search that errs by half of the radius's worth finds them all, and no other."""
    model, x, y = linear
    attack = choose("attacks", {"kind": kind})
    points = attack.module.perturb(attack.params, Target(Shifted(model, by), BALL, judge=model), x, y, generator(0, "judge"))
    clear = (model.margin(x, y) / BALL.eps - 1).abs() > 0.02
    held = model(BALL.project(points, x)).argmax(1) == y
    assert torch.equal(held[clear], (model.margin(x, y) > BALL.eps)[clear])


def test_the_judge_is_asked_about_what_the_search_calls_broken_and_nothing_twice(linear):
    model, x, y = linear
    asked = []

    def judge(points):
        asked.append(len(points))
        return model(points)

    target = Target(model, BALL, judge=judge)
    best = target.incumbent(x)
    g, _, _ = gradient(model, x, y)
    fallen = BALL.project(x + BALL.eps * g.sign(), x)
    for _ in range(2):
        best.offer(fallen, model(fallen), y)
    assert asked == [int((model(fallen).argmax(1) != y).sum())] == [int(best.broken.sum())]


# Runs abreast -----------------------------------------------------------------------------------------------------------------------------

RUNS = {
    "margin": {"restarts": 4},
    "pma": {},
    "a3": {"rounds": 4},
    "apgd": {"loss": "margin_targeted", "targets": 4, "order": "nearest", "steps": 20},
}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("kind", RUNS)
def test_runs_go_abreast_where_there_is_room_and_find_the_same(kind, norm, linear):
    model, x, y = linear
    ball, calls = ThreatModel(norm=norm, eps={"linf": 0.1, "l2": 0.3, "l1": 0.3}[norm]), []
    attack = choose("attacks", {"kind": kind} | RUNS[kind])

    def network(points):
        calls.append(len(points))
        return model(points)

    held, passes = [], []
    for room in (0, 2 * N):
        calls.clear()
        points = attack.module.perturb(attack.params, Target(network, ball, room=room), x, y, generator(0, "room"))
        held.append(model(points).argmax(1) == y)
        passes.append(len(calls))
        assert max(calls) <= max(room, N) and bool((ball.distance(points, x) <= ball.eps + 1e-5).all())
    assert passes[1] <= 0.75 * passes[0] and (held[0] != held[1]).float().mean() <= 0.02 and 0.1 < held[0].float().mean() < 0.9


def test_of_runs_that_go_abreast_the_best_point_is_kept():
    """Misread before read rightly, and what is no number is misread; then the higher loss."""
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [1.0, 0.0], [0.0, 5.0], [torch.nan, 0.0]])  # two runs of three images
    points, y = torch.arange(6.0).view(6, 1, 1, 1), torch.tensor([0, 0, 0, 0, 0, 0])
    best = Target(lambda x: x, BALL).incumbent(torch.full((3, 1, 1, 1), -1.0))
    best.offer(points[:, :, :, :], logits, y, torch.arange(3), 2)
    assert best.points.flatten().tolist() == [3.0, 4.0, 5.0] and best.broken.tolist() == [False, True, True]


@pytest.mark.parametrize("kind", ["pgd", "margin", "pma", "a3", "apgd", "square"])
def test_a_search_waits_no_more_often_the_longer_it_is(kind, linear, monkeypatch):
    """With questions as rare as on a GPU; of images of which none falls."""
    monkeypatch.setitem(searches.EVERY, "cpu", 1000)
    model, x, y = linear
    small = ThreatModel(norm="linf", eps=1e-4)

    def waits(length: int) -> int:
        attack = choose("attacks", {"kind": kind, ("queries" if kind == "square" else "steps"): length})
        with Waits() as counted:
            attack.module.perturb(attack.params, Target(model, small), x, y, generator(0, "waits"))
        return len(counted.seen)

    assert waits(8) == waits(32)


@pytest.mark.parametrize("kind", ["margin", "pma", "a3", "square"])
def test_what_is_asked_rarely_finds_what_is_asked_at_each_step(kind, linear, monkeypatch):
    model, x, y = linear
    clear = (model.margin(x, y) / BALL.eps - 1).abs() > 0.02
    attack = choose("attacks", {"kind": kind} | ({"queries": 200} if kind == "square" else {}))
    held = []
    for every in (1, 10):
        monkeypatch.setitem(searches.EVERY, "cpu", every)
        points = attack.module.perturb(attack.params, Target(model, BALL), x, y, generator(0, "rare"))
        held.append(model(points).argmax(1) == y)
    assert torch.equal(*(one[clear] for one in held))


def layers(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from (tensor.clone() for tensor in model.state_dict().values())


def test_the_search_is_a_copy_that_agrees_with_the_model(trained, digits):
    x, y = few(digits["test"], 16)
    before = list(layers(trained))
    quick = search.Search(trained)
    z = quick(x)
    assert z.dtype == torch.float32 and all(torch.equal(*pair) for pair in zip(before, layers(trained)))
    assert not torch.equal(z, trained(x)) and (z - trained(x)).abs().max() < 0.05 * trained(x).abs().max()
    assert search.agreement(trained, quick, x, y) >= search.AGREES


def test_it_is_used_where_the_processor_has_it_and_it_agrees(trained, digits, monkeypatch):
    x, y = few(digits["test"], 16)
    monkeypatch.setattr(search, "has_bfloat16", lambda device: False)
    assert search.search(trained, x, y) is None
    monkeypatch.setattr(search, "has_bfloat16", lambda device: True)
    assert isinstance(search.search(trained, x, y), search.Search)
    assert search.search(two_of_five(), x, y) is None  # nothing in it that would be quicker
    assert search.search(subject(copy.deepcopy(nn.Sequential(trained).eval()).bfloat16(), x), x, y) is None
    monkeypatch.setattr(search, "agreement", lambda *_: 0.9)
    assert search.search(trained, x, y) is None


def test_what_it_leaves_is_attacked_in_float32_last_and_that_is_said(digits, monkeypatch):
    monkeypatch.setattr(search, "has_bfloat16", lambda device: True)
    model = fit(classifier(), digits["train"], kind="pgd", steps=2).eval().requires_grad_(False)
    x, y = few(digits["test"], 60)
    suites = [ready("quick", Suite(thorough=thorough)) for thorough in (False, True)]
    results = [robustness.evaluate(model, None, x, y, BALL, suite, (0, "x")) for suite in suites]
    assert [list(one.attacks) for one in results] == [[*READY["quick"]["attacks"], robustness.PRECISE], list(READY["quick"]["attacks"])]
    assert [robustness.QUICK in one.facts for one in results] == [True, False]
    assert abs(results[0].worst_case - results[1].worst_case) <= 2 / len(x)
    o = results[0].outcomes
    with torch.no_grad():
        assert torch.equal((model(o.points).argmax(1) == y).float(), o.share)


def test_in_doubt_the_search_in_bfloat16_spares_nothing_in_the_end(digits, monkeypatch):
    """Whatever spared an image runs in full, the last attack in float32 too, and none of that in bfloat16."""
    monkeypatch.setattr(search, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(robustness, "DOUBT", diagnostics.DOUBT + ("gradient-masked",))
    monkeypatch.setattr(diagnostics, "MASKED_GAP", -1.0)
    model = fit(classifier(), digits["train"], kind="pgd", steps=2).eval().requires_grad_(False)
    x, y = few(digits["test"], 300)
    found = robustness.evaluate(model, None, x, y, BALL, ready("quick"), (0, "x"))
    spared = [name for name, (_, left) in found.outcomes.spared.items() if left]
    assert robustness.PRECISE in spared and [name for name in found.attacks if name.endswith(IN_FULL)] == [n + IN_FULL for n in spared]


def test_a_doubling_that_did_not_run_is_made_up_for_in_doubt_and_what_it_takes_counts(linear):
    """The first doubling takes nothing of those that it is tried on, so that the second does not run; in full both do."""
    attempts = {name: Attempt(STEP, doubling=k, probe=0.1) for k, name in ((1, "x2"), (2, "x4"))}
    lifted = {name + IN_FULL: replace(one, probe=0.0, spared_by=name) for name, one in attempts.items()}
    model, x, y = linear
    part = Evaluation(model, None, BALL, (0, "doublings"), 64, doubted=lambda outcomes: True)
    found = part.run(torch.arange(N), x, y, {"step": Attempt(STEP)} | attempts | lifted)
    held = int(found.share.sum())
    assert found.spared == {"x2": (FEWEST, held - FEWEST), "x4": (0, held)} and list(found.after)[-2:] == [*lifted]
    found.after = {"step": 0.5, "x2": 0.5, "x4": 0.48, "x2 in full": 0.45, "x4 in full": 0.44}
    assert diagnostics._last_doubling(found, attempts | lifted) == pytest.approx(0.03)


def test_autoattack_stays_as_its_authors_have_it(digits, monkeypatch):
    monkeypatch.setattr(search, "has_bfloat16", lambda device: True)
    model = fit(classifier(), digits["train"]).eval().requires_grad_(False)
    alone = Suite.model_validate({"attacks": {"aa": {"kind": "autoattack", "version": "custom", "attacks": ["apgd-ce"]}}})
    result = robustness.evaluate(model, None, *few(digits["test"], 8), ThreatModel(norm="linf", eps=0.02), alone, (0, "x"))
    assert list(result.attacks) == ["aa"] and robustness.QUICK not in result.facts
