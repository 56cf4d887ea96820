"""Every model of the zoo is judged rightly, or refused in one sentence (docs/results/zoo.md)."""

import pytest
import torch

from basin.errors import Mistake
from zoo import honest
from zoo.hostile import ANIMALS
from zoo.judging import judged
from zoo.species import EPS, N

LONG = {  # judged in `make test-all`
    "a backward pass that raises",
    "a deep net",
    "a list of one",
    "a small transformer of patches",
    "a wide net",
    "an attribute called single",
    "an ensemble",
    "answers in whole hundredths, integers",
    "batch norm in evaluation mode",
    "bfloat16 weights",
    "detached",
    "double weights",
    "dropout that is off",
    "gradient 1e-30 of what it is",
    "gradient 1e30 of what it is",
    "gradient drawn from anywhere",
    "gradient of another image",
    "gradient of one pixel",
    "gradient reversed",
    "half-precision logits",
    "inference_mode inside",
    "log-softmax outputs",
    "logits through a staircase",
    "max-pooling",
    "no_grad inside",
    "one-hot answers",
    "pixels rounded to five values",
    "pixels rounded to nine values",
    "pixels rounded, straight through",
    "quantised weights",
    "saturated probabilities",
    "two hundred classes",
    "uneven classes, all known",
}


def marked(animals):
    return [pytest.param(animal, id=animal.name, marks=[pytest.mark.slow] * (animal.name in LONG)) for animal in animals]


@pytest.mark.parametrize("animal", marked(ANIMALS))
def test_a_hostile_model_is_judged_rightly_or_refused(animal):
    own = [tensor.clone() for tensor in animal.data()]
    if isinstance(animal.truth, str):
        with pytest.raises(Mistake) as refusal:
            judged(animal)
        assert str(refusal.value).startswith(animal.truth) and len(refusal.value.messages) == 1
    else:
        found = judged(animal)
        clean, worst = animal.truth
        assert found.clean == pytest.approx(clean, abs=animal.slack if animal.slack > 1 / N else 1e-6)
        low, high = found.interval
        assert low <= worst <= high and found.worst_case <= worst + animal.slack, (found.worst_case, worst, found.outcomes.after)
        assert animal.flags <= set(found.flags) and animal.facts in "; ".join(found.facts), (found.flags, found.facts)
    assert all(torch.equal(now, was) for now, was in zip(animal.data(), own)), "the caller's images stay what they were"


@pytest.mark.parametrize("animal", marked(honest.ANIMALS))
def test_an_honest_model_is_judged_rightly_without_a_flag(animal):
    found, (clean, worst) = judged(animal), animal.known()
    assert found.flags == [], (found.flags, found.diagnosis.probes)
    assert found.clean == pytest.approx(clean, abs=1e-6) and found.worst_case <= worst + animal.slack, (found.worst_case, worst)
    assert_broken_inside(animal, found.outcomes)


def assert_broken_inside(animal, outcomes):
    """Every image that counts as broken is misread at a point of its ball, by the model as it came."""
    x, y = animal.data()
    points, broken = outcomes.points, outcomes.share == 0
    assert points.min() >= 0 and points.max() <= 1 and (points - x).abs().max() <= EPS + 1e-6
    assert torch.equal(animal.make()(points).argmax(1) != y, broken)
