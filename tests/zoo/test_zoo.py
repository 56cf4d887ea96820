"""Every model of the zoo is judged rightly, or refused in one sentence (docs/results/zoo.md)."""

import pytest
import torch

from basin.errors import Mistake
from zoo.hostile import ANIMALS
from zoo.judging import judged
from zoo.species import N


@pytest.mark.parametrize("animal", ANIMALS, ids=lambda animal: animal.name)
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
