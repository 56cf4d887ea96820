"""Is this number believable? Each flag is a sign that an attack was blind; docs/flags.md says what to do about it."""

from collections.abc import Mapping

from pipeline.classifier import Classifier
from pipeline.evaluation import Outcomes
from pipeline.lookup import Choice
from pipeline.stability import is_unstable, starts, stiffness

BLACK_BOX_SHARE = 0.01  # of all images, broken by an attack without gradients after every gradient attack had failed on them
MASKED_GAP = 0.05  # robust accuracy under the wrong gradient less that under the suite


def flags(classifier: Classifier, outcomes: Outcomes, attacks: Mapping[str, Choice]) -> list[str]:
    """The flags that a suite's outcomes raise, by name."""
    raised = {
        "black-box-beats-white-box": _black_box_share(outcomes, attacks) > BLACK_BOX_SHARE,
        "gradient-masked": outcomes.masked is not None and _gap(outcomes) > MASKED_GAP,
        "stiff-solve": _is_stiff(classifier, outcomes),
    }
    return [name for name, is_raised in raised.items() if is_raised]


def _black_box_share(outcomes: Outcomes, attacks: Mapping[str, Choice]) -> float:
    blind = [name for name, attack in attacks.items() if getattr(attack.module, "BLACK_BOX", False)]
    seeing = [name for name in attacks if name not in blind]
    order = list(attacks)
    last_seeing = max((order.index(name) for name in seeing), default=len(order))
    late = {name for name in blind if order.index(name) > last_seeing}
    return sum(name in late for name in outcomes.attack) / len(outcomes)


def _gap(outcomes: Outcomes) -> float:
    assert outcomes.masked is not None
    return (outcomes.masked.float().mean() - outcomes.robust.float().mean()).item()


def _is_stiff(classifier: Classifier, outcomes: Outcomes) -> bool:
    images = outcomes.images[:64].to(next(classifier.parameters()).device)
    return any(is_unstable(flow, stiffness(flow, z0)) for flow, z0 in starts(classifier, images))
