"""Robust accuracy: every image judged by the reported function, at its worst; interrupted anywhere, the same bytes."""

import csv
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import BALL, SODEF, classifier, few, fit
from torch.nn.functional import cross_entropy

from basin.config.kinds import Choice, choose
from basin.config.settings import Settings
from basin.config.solver import Solver
from basin.evaluation import outcomes
from basin.evaluation.cascade import Evaluation
from basin.evaluation.interval import wilson
from basin.evaluation.ways import Attempt, Way
from basin.threat.ball import TOLERANCE
from basin.threat.target import gradient

ATTACKS = {
    "fgsm": {"kind": "fgsm"},
    "pgd": {"kind": "pgd", "steps": 4},
    "square": {"kind": "square", "queries": 20},
    "transfer": {"kind": "transfer", "attacks": [{"kind": "pgd", "steps": 4}]},
}
CURVE = ({"kind": "pgd", "steps": 3}, [0.02, 0.05, 0.1, 0.3])
WRONG = ({"kind": "pgd", "steps": 3}, Solver(method="dopri5", gradient="adjoint"))


class Killed(BaseException):
    pass


@dataclass(frozen=True)
class Own(Choice):
    """An attack written in a test: `perturb(params, target, images, labels, generator)`."""

    perturb: Callable = lambda *_: None

    @property
    def module(self):
        return SimpleNamespace(perturb=self.perturb, Params=Settings)


def own(perturb) -> Own:
    return Own("attacks", "own", Settings(), {}, perturb)


def attacks(**more) -> dict[str, Choice]:
    return {name: choose("attacks", settings) for name, settings in ATTACKS.items()} | more


def attempts(suite=None) -> dict[str, Attempt]:
    return {name: Attempt(attack) for name, attack in (attacks() if suite is None else suite).items()}


@pytest.fixture(scope="module")
def sodef(digits):
    """A classifier that solves an ODE."""
    return fit(classifier(head=SODEF), digits["train"], epochs=2).eval().requires_grad_(False)


@pytest.fixture
def run(sodef, twin, digits):
    """`run(...)` evaluates on 50 images; the rest is as a suite would have it."""

    def evaluate(model=sodef, twin=twin, checkpoint=None, batch=20, suite=None, masked=WRONG, curve=CURVE, n=50, seed=0):
        x, y = few(digits["test"], n)
        evaluator = Evaluation(model, twin, BALL, (seed, "attack/x"), batch, checkpoint)
        wrong = masked and Attempt(choose("attacks", masked[0]), Way(solver=masked[1]))
        radii = curve and (Attempt(choose("attacks", curve[0])), curve[1])
        return evaluator.run(torch.arange(n), x, y, attempts(suite), wrong, radii)

    return evaluate


def files(folder, found) -> dict[str, bytes]:
    outcomes.write(folder, found, BALL, {"model": "head/x"})
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_points_that_are_there_already_are_judged_and_the_worst_kept(run, sodef, digits):
    """Points of another model are projected into this ball and count as any other attack's."""
    x, y = few(digits["test"], 50)
    found = run(masked=None, curve=None)
    far = x + 2 * (found.points - x)  # outside the ball: brought back to its surface
    judged = Evaluation(sodef, None, BALL, (0, "exchange/x"), 20).run(torch.arange(50), x, y, {}, stored={"weak": x, "strong": far})
    assert judged.after["weak"] == outcomes.mean(judged.clean_share)
    assert judged.after["strong"] <= found.robust
    assert bool((BALL.distance(judged.points, x) <= BALL.eps + TOLERANCE).all())
    assert set(judged.attack) <= {"", "clean", "strong"} and "strong" in judged.attack


# The numbers ------------------------------------------------------------------------------------------------------------------------------


def test_what_is_written_is_what_the_reported_function_says(run, sodef, digits, tmp_path):
    """Everything is computed again from the stored points."""
    files(tmp_path, run())
    rows = list(csv.DictReader((tmp_path / "outcomes.csv").open()))
    summary = json.loads((tmp_path / "summary.json").read_text())
    stored = load_file(tmp_path / "adversarial.safetensors")
    x, y = few(digits["test"], 50)
    column = lambda name: torch.tensor([int(row[name]) for row in rows])  # noqa: E731
    assert column("image").tolist() == list(range(50)) and torch.equal(column("label"), y) and torch.equal(stored["clean"], x)
    distance = (stored["images"] - x).flatten(1).abs().amax(1)
    assert distance.max() <= BALL.eps + TOLERANCE and stored["images"].min() >= 0 and stored["images"].max() <= 1
    logits = sodef(stored["images"])
    clear = logits.topk(2).values.diff().abs()[:, 0] > 1e-4  # judged there in a batch of another size
    assert clear.sum() > 45 and torch.equal(column("clean"), sodef(x).argmax(1))
    assert torch.equal(column("adversarial")[clear], logits.argmax(1)[clear])
    assert torch.equal(column("robust").bool()[clear], (logits.argmax(1) == y)[clear])
    for row, loss, far in zip(rows, cross_entropy(logits, y, reduction="none").tolist(), distance.tolist()):
        assert float(row["loss"]) == pytest.approx(loss, abs=1e-4) and float(row["distance"]) == pytest.approx(far, abs=1e-6)
        assert (row["attack"] == "") is (row["robust"] == "1")
        assert (row["attack"] == "clean") is (row["clean"] != row["label"])
        if row["robust"] == "1":
            assert row["masked"] == "1"  # what nothing broke, the wrong gradient did not break
    robust = column("robust").float().mean().item()
    assert summary["robust"] == pytest.approx(robust) and summary["interval"] == pytest.approx(wilson(round(robust * 50), 50))
    assert summary["clean"] == pytest.approx((column("clean") == y).float().mean().item())
    assert summary["masked"]["robust"] == pytest.approx(column("masked").float().mean().item())
    assert summary["threat"] == {"norm": "linf", "eps": 0.1} and summary["n"] == 50
    held = 50 - sum(row["attack"] in ("clean", "pgd (adjoint gradient of dopri5)") for row in rows)
    for name, after in summary["attacks"].items():  # each takes from what the one before it left
        held -= sum(row["attack"] == name for row in rows)
        assert after == pytest.approx(held / 50)
    assert list(summary["attacks"]) == list(ATTACKS) and list(summary["attacks"].values())[-1] == summary["robust"]


def test_the_curve_falls_and_begins_with_the_clean_accuracy(run):
    outcomes = run()
    radii, robust = zip(*outcomes.curve)
    assert radii == (0.0, *CURVE[1]) and list(robust) == sorted(robust, reverse=True)
    assert robust[0] == int((outcomes.clean == outcomes.labels).sum()) / 50
    assert robust[-1] < robust[0]


def test_where_nothing_breaks_the_point_of_highest_loss_is_kept(run, sodef):
    outcomes = run(masked=None, curve=None)
    held = outcomes.share > 0
    clean = cross_entropy(sodef(outcomes.images), outcomes.labels, reduction="none")
    assert held.any() and (outcomes.loss[held] >= clean[held]).all() and (outcomes.loss[held] > clean[held]).any()


def test_the_number_of_passes_is_that_of_the_network(run, sodef):
    """FGSM: one gradient and one judgement an image; and the clean pass."""
    outcomes = run(suite={"fgsm": choose("attacks", {"kind": "fgsm"})}, masked=None, curve=None)
    alive = int((outcomes.clean == outcomes.labels).sum())
    assert outcomes.passes == 50 + 2 * alive


# The rules --------------------------------------------------------------------------------------------------------------------------------


def test_a_broken_image_is_not_attacked_again(run):
    given: list[torch.Tensor] = []

    def recorder(params, target, images, labels, generator):
        given.append(images)
        return images

    outcomes = run(suite=attacks(recorder=own(recorder)), masked=None, curve=None)
    assert len(torch.cat(given)) == int(outcomes.share.sum())
    assert torch.equal(torch.cat(given), outcomes.images[outcomes.alive])


def test_a_point_outside_the_ball_is_projected_before_it_counts(run):
    """An attack that cheats: its points break nothing that the ball's own points would not."""
    outcomes = run(suite={"cheat": own(lambda params, target, x, y, g: x + 5 * torch.sign(x - 0.5))}, masked=None, curve=None)
    assert BALL.distance(outcomes.points, outcomes.images).max() <= BALL.eps + TOLERANCE
    assert outcomes.points.min() >= 0 and outcomes.points.max() <= 1


def test_an_attack_that_claims_much_and_does_nothing_breaks_nothing(run):
    outcomes = run(suite={"idle": own(lambda params, target, x, y, g: x)}, masked=None, curve=None)
    assert torch.equal(outcomes.share > 0, outcomes.clean == outcomes.labels)


def test_an_attack_whose_points_are_not_numbers_is_found_out(run, caplog):
    outcomes = run(suite={"broken": own(lambda params, target, x, y, g: x * torch.nan)}, masked=None, curve=None)
    assert torch.equal(outcomes.points, outcomes.images) and "points of broken are no numbers (20 images); their clean" in caplog.text


def test_what_needs_a_twin_is_left_out_where_there_is_none(run):
    assert list(run(twin=None, curve=None, masked=None).after) == ["fgsm", "pgd", "square"]


def test_where_no_image_is_read_rightly_there_is_nothing_to_attack(run, sodef, twin, digits):
    x, y = few(digits["test"], 30)
    wrong, radii = Attempt(choose("attacks", WRONG[0]), Way(solver=WRONG[1])), (Attempt(choose("attacks", CURVE[0])), CURVE[1])
    labels = (sodef(x).argmax(1) + 1) % 10
    outcomes = Evaluation(sodef, twin, BALL, (0, "x"), 20).run(torch.arange(30), x, labels, attempts(), wrong, radii)
    assert set(outcomes.attack) == {"clean"} and outcomes.passes == 30
    assert set(outcomes.after.values()) == {0.0} and {robust for _, robust in outcomes.curve} == {0.0}


@pytest.mark.slow
def test_an_adjoint_that_overflows_gives_no_direction_and_no_crash(run):
    """dz/dt = -20 z for 20 units of time: back in time it grows by e^400."""
    model = classifier(head=SODEF | {"T": 20.0, "solver": {"steps": 300}}).eval().requires_grad_(False)
    model.head.flow.drift.linear.weight.copy_(20 * torch.eye(16))
    outcomes = run(model=model, curve=None, suite={"fgsm": choose("attacks", {"kind": "fgsm"})}, twin=None)
    assert outcomes.masked is not None and outcomes.points.isfinite().all()


def test_a_network_whose_gradient_is_not_a_number_is_evaluated_to_the_end(run, sodef, digits):
    class Blind(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = sodef

        def forward(self, x):
            return self.inside(x) + (x.flatten(1).sum(1, keepdim=True) * 0).sqrt()  # whose derivative is infinity times 0

    outcomes = run(model=Blind(), masked=None)
    assert outcomes.points.isfinite().all() and outcomes.loss.isfinite().all()
    assert outcomes.after["fgsm"] == outcomes.curve[0][1]  # no direction to go
    assert outcomes.after["transfer"] <= outcomes.after["square"] < outcomes.after["fgsm"]  # which need none


class Refusing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise RuntimeError("a_kernel does not have a deterministic implementation, but you set 'torch.use_deterministic_algorithms'.")


def test_a_kernel_that_is_refused_is_no_gradient_of_zero():
    images, labels = torch.full((2, 1, 1, 3), 0.5), torch.tensor([0, 1])
    with pytest.raises(RuntimeError, match="a_kernel does not have a deterministic implementation"):
        gradient(lambda x: Refusing.apply(x).flatten(1), images, labels)


def test_the_batch_changes_no_deterministic_attack(run):
    suite = {"pgd": choose("attacks", {"kind": "pgd", "steps": 4, "random_start": False})}
    one, other = (run(suite=suite, batch=batch, masked=None, curve=None) for batch in (7, 50))
    assert one.attack == other.attack and one.passes == other.passes
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-3, atol=1e-4)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(run, tmp_path):
    one, same, other = (files(tmp_path / name, run(seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert one == same and one["adversarial.safetensors"] != other["adversarial.safetensors"]


# Interruptions ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", range(6), ids=["masked", *ATTACKS, "curve"])
def test_interrupted_in_any_step_it_ends_as_if_it_had_not_been(position, run, tmp_path, monkeypatch):
    """masked, four attacks, curve: killed inside one, resumed, the files are the same."""
    whole = files(tmp_path / "whole", run())
    path = tmp_path / "checkpoints" / "c.safetensors"
    steps = ["_masked", *["attack"] * len(ATTACKS), "_curve"]
    real, calls = getattr(Evaluation, steps[position]), []

    def dying(self, *arguments):
        calls.append(1)
        if steps[position] == "attack" and len(calls) < position:
            return real(self, *arguments)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Evaluation, steps[position], dying)
        run(checkpoint=path)
    assert path.exists() is (position > 0)
    assert files(tmp_path / "resumed", run(checkpoint=path)) == whole
    assert files(tmp_path / "again", run(checkpoint=path)) == whole  # what comes after the attacks may be killed as well


def test_a_damaged_checkpoint_starts_over_with_a_warning(run, tmp_path, caplog):
    whole = files(tmp_path / "whole", run())
    path = tmp_path / "c.safetensors"

    def dying(*_):
        raise Killed

    with pytest.raises(Killed):
        run(checkpoint=path, suite={**attacks(), "transfer": own(dying)})
    kept = path.read_bytes()
    for damage in (lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-5] + bytes([b[-5] ^ 1]) + b[-4:]):
        path.write_bytes(damage(kept))
        with caplog.at_level(logging.WARNING):
            assert files(tmp_path / "again", run(checkpoint=path)) == whole
        assert f"{path}: unreadable checkpoint" in caplog.text
        caplog.clear()


def test_files_can_be_read_by_whom_the_umask_lets(run, tmp_path):
    """safetensors' own save_file gives 0600."""
    files(tmp_path / "x", run(suite={"fgsm": choose("attacks", {"kind": "fgsm"})}, masked=None, curve=None))
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "x").iterdir()}
    (tmp_path / "plain").touch()
    assert modes == {(tmp_path / "plain").stat().st_mode & 0o777}


# Intervals --------------------------------------------------------------------------------------------------------------------------------


def by_quadratic(k: int, n: int) -> np.ndarray:
    """The p with |k/n - p| = z sqrt(p (1 - p) / n), as the roots of a polynomial."""
    z2, share = 1.959963984540054**2, k / n
    return np.sort(np.roots([1 + z2 / n, -(2 * share + z2 / n), share**2]).real)


@pytest.mark.parametrize(("k", "n"), [(766, 1000), (1, 10), (9, 10), (150, 300), (1, 10_000)])
def test_wilson_is_the_root_of_its_equation(k, n):
    assert wilson(k, n) == pytest.approx(by_quadratic(k, n), abs=1e-9)


def test_wilson_by_the_numbers():
    """Against published values: 766 of 1000, and Newcombe's (1998) 81 of 263."""
    assert wilson(766, 1000) == pytest.approx((0.7388, 0.7912), abs=1e-4)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_wilson_at_its_ends():
    assert wilson(0, 50)[0] == 0.0 and 0 < wilson(0, 50)[1] < 0.1
    assert wilson(50, 50)[1] == 1.0 and 0.9 < wilson(50, 50)[0] < 1
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.95])
def test_wilson_covers_the_truth_nineteen_times_in_twenty(p):
    draws = np.random.default_rng(0).binomial(300, p, 4000)
    inside = [low <= p <= high for low, high in (wilson(int(k), 300) for k in draws)]
    assert 0.93 < np.mean(inside) < 0.975
