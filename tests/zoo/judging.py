"""How the zoo's models are judged: Basin's adaptive suite, shortened."""

from basin.config.suite import Suite
from basin.evaluation.robustness import Result, evaluate
from basin.evaluation.subject import normalisation, subject
from basin.threat.ball import ThreatModel
from zoo.species import EPS, Animal

SUITE = Suite.model_validate({"adaptive": {"steps": 20, "targets": 4, "queries": 300, "draws": 10, "doublings": 0}})


def judged(animal: Animal, suite: Suite = SUITE) -> Result:
    """The animal's own images under a suite. Raises Mistake where it is refused."""
    x, y = animal.data()
    model = animal.make() if animal.as_it_is else animal.make().eval()
    if animal.normalise:
        model = subject(model, x[:16], normalisation(animal.normalise, model))
    return evaluate(model, None, x, y, ThreatModel(norm="linf", eps=EPS), suite, (0, "zoo"))
