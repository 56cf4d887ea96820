"""Classes of different sizes: figures that say so, models that do not read what they are shown, and honest ones that raise no flag."""

import json
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from basin.cli import app
from basin.config.suite import Suite
from basin.evaluation import classes
from basin.evaluation.cascade import Evaluation
from basin.evaluation.outcomes import measures
from basin.evaluation.robustness import Result, evaluate
from basin.threat.ball import ThreatModel

SIZES = (130, 38, 20, 9, 3)  # of a folder with 200 images of one class and 5 to 60 of the others, as a split leaves them
BALL = ThreatModel(norm="linf", eps=0.02)


class Shown(nn.Module):
    """Reads the class of an image, which is its brightness, and answers what `answers` has for it; the other logits fall with distance."""

    def __init__(self, answers: tuple[int, ...] = (0, 1, 2, 3, 4), outputs: int = 5):
        super().__init__()
        self.outputs, self.at = outputs, {answer: [i for i, one in enumerate(answers) if one == answer] for answer in set(answers)}

    def forward(self, x: Tensor) -> Tensor:
        z = -40 * (x.mean((1, 2, 3))[:, None] - (torch.arange(5).to(x) + 0.5) / 5).abs()
        never = z.amin(1) - 10
        return torch.stack([z[:, self.at[i]].amax(1) if i in self.at else never for i in range(self.outputs)], 1)


MODELS = {
    "honest": (Shown(), []),
    "constant": (Shown((0, 0, 0, 0, 0)), ["at-chance", "class-not-answered"]),
    "never 2, 3, 4": (Shown((0, 1, 0, 0, 0)), ["class-not-answered"]),
    "two of five": (Shown((7, 8, 7, 8, 9), outputs=10), ["at-chance", "more-outputs-than-classes"]),
    "ten outputs": (Shown(outputs=10), []),
}
NEVER = """
import torch

class Never(torch.nn.Module):  # answers 1 at the brightness of class 1, else 0
    def __init__(self):
        super().__init__()
        self.eval()

    def forward(self, x):
        b = x.mean((1, 2, 3))
        return torch.stack([0 * b, 0.1 - (b - 0.3).abs(), *[0 * b - 1] * 3], 1)
"""
READ = {"at-chance", "class-not-answered", "more-outputs-than-classes"}


def shown(sizes: tuple[int, ...] = SIZES) -> tuple[Tensor, Tensor]:
    """Images of one brightness each, and their classes, shuffled."""
    labels = torch.arange(5).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    return ((labels + 0.5) / 5)[:, None, None, None].expand(-1, 1, 4, 4).contiguous(), labels


def judged(model: nn.Module, known: int | None = None) -> Result:
    suite = Suite.model_validate({"attacks": {"pgd": {"kind": "pgd", "steps": 3}}})
    return evaluate(model.eval(), None, *shown(), BALL, suite, (0, "classes"), classes=known)


# What is said -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_does_not_read_the_images_is_told_and_one_that_does_is_not(name, caplog, monkeypatch):
    model, flags = MODELS[name]
    before: list[str] = []
    candidates = Evaluation._candidates  # of every attack
    monkeypatch.setattr(Evaluation, "_candidates", lambda *given: (before.append(caplog.text), candidates(*given))[1])
    assert READ.intersection((found := judged(model)).flags) == set(flags), found.flags
    said = before[0] if before else caplog.text  # nothing is attacked where nothing is read
    assert {flag for flag in READ if f"classes: {flag}, before any attack" in said} == set(flags)


def test_where_the_data_say_how_many_classes_they_have_their_largest_label_does_not():
    assert "more-outputs-than-classes" not in judged(MODELS["two of five"][0], known=10).flags


def test_the_figures_of_a_model_that_never_answers_three_of_five_classes():
    """Right on the two largest, in the ball too: 84% and 40%."""
    found = measures(judged(MODELS["never 2, 3, 4"][0]).outcomes)
    assert (found["clean"], found["robust"], found["largest_class"], found["uneven"]) == (0.84, 0.84, 0.65, True)
    assert found["balanced_clean"] == found["balanced_worst_case"] == pytest.approx(0.4)
    assert found["by_class"] == {str(i): [n, float(i < 2), float(i < 2)] for i, n in enumerate(SIZES)}


def test_the_means_over_the_classes_are_of_shares_of_draws():
    labels, clean, robust = np.array([0, 0, 0, 1]), np.array([1, 0.5, 0, 1]), np.array([0, 0, 0, 0.25])
    expected = {"largest_class": 0.75, "balanced_clean": 0.75, "balanced_worst_case": 0.125}
    assert classes.balance(labels, clean, robust) == pytest.approx(expected)


@pytest.mark.parametrize(("sizes", "uneven"), [((30,) * 10, False), ((70, 30), True), ((55, 45), False), ((5,), False), (SIZES, True)])
def test_classes_differ_in_size_where_accuracy_and_mean_can_be_ten_points_apart(sizes, uneven):
    assert classes.is_uneven(np.repeat(range(len(sizes)), sizes)) is uneven


@pytest.mark.parametrize(("kinds", "n"), [(10, 40), (10, 300), (200, 300)])
def test_images_drawn_from_equal_classes_are_not_called_uneven(kinds, n):
    draw = np.random.default_rng(0)
    assert sum(classes.is_uneven(draw.integers(0, kinds, n)) for _ in range(200)) <= 4


@pytest.mark.parametrize(("sizes", "says"), [(SIZES, True), ((40,) * 5, False)])
def test_basin_evaluate_says_it_where_classes_differ_in_size(sizes, says, tmp_path, monkeypatch, capsys):
    (tmp_path / "own.py").write_text(NEVER)
    images, labels = shown(sizes)
    np.savez(tmp_path / "data.npz", images=images.numpy(), labels=labels.numpy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit):
        app.app(["evaluate", "own.py:Never", "--data", "data.npz", "--eps", "0.02", "--suite", "quick", "--json", "answer.json"])
    said, answer = capsys.readouterr().out, json.loads((tmp_path / "answer.json").read_text())
    assert ("  65.0%  are of one class: what that answer alone would score" in said) is says
    assert ("  40.0%  clean, mean over the classes; worst case 40.0%" in said) is says
    assert "class-not-answered" in answer["flags"] and answer["balanced_worst_case"] == pytest.approx(0.4)
    assert answer["by_class"]["4"] == [sizes[4], 0, 0]


# What is not ------------------------------------------------------------------------------------------------------------------------------


def raised(recalls: np.ndarray, n: int, draw: np.random.Generator, share: np.ndarray | None = None) -> np.ndarray:
    """Whether `class-not-answered` and `at-chance` are raised by a classifier of known recalls on n images drawn from its classes."""
    labels = draw.choice(len(recalls), n, p=share)
    right = draw.random(n) < recalls[labels]
    answers = np.where(right, labels, (labels + draw.integers(1, len(recalls), n)) % len(recalls))
    return np.array([classes.ignorance(labels, right.astype(float)) > 1, classes.guessing(labels, answers) > 1])


HONEST = {
    "of 200 classes, few images each": (lambda draw: np.full(200, 0.8), 300, None),
    "of 200 classes, weak": (lambda draw: np.full(200, 0.4), 300, None),
    "of 200 classes, no two alike": (lambda draw: draw.beta(2, 3, 200), 10000, None),
    "adversarially trained, one class at 0.4": (lambda draw: np.array([0.4] + [0.85] * 9), 300, None),
    "the same on few images": (lambda draw: np.array([0.4] + [0.85] * 9), 50, None),
    "unbalanced but good": (lambda draw: np.array([0.99, 0.7]), 300, [0.95, 0.05]),
    "below the constant answer, and reading": (lambda draw: np.array([0.85, 0.8]), 300, [0.9, 0.1]),
    "small classes read less": (lambda draw: np.array([0.97, 0.8, 0.7, 0.6, 0.5]), 62, np.array(SIZES) / 200),
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_classifier_is_not_flagged_by_chance(name):
    recalls, n, share = HONEST[name]
    draw, times = np.random.default_rng(0), 200 if n < 1000 else 20
    assert sum(raised(recalls(draw), n, draw, share) for _ in range(times)).max() <= 0.01 * times


def test_images_that_could_not_tell_say_nothing():
    """One class, or so few images that a perfect reader is right as often as chance would be."""
    for n, kinds in ((1, 1), (5, 1), (2, 2), (3, 2)):
        labels = np.arange(n) % kinds
        assert classes.guessing(labels, labels) == classes.ignorance(labels, np.ones(n)) == 0


def test_one_class_of_ten_that_is_never_answered_is_told_where_it_has_images_enough():
    """The others are read nine times in ten, so one that is known would be two in five times: 0.6^n of n images are missed by chance."""
    for each, told in ((3, False), (12, True)):
        labels = np.repeat(range(10), each)
        assert (classes.ignorance(labels, (labels != 3) * 0.9) > 1) is told
