"""Transfer from the undefended twin. No gradient of the attacked network: it passes where that gradient is masked.

White-box attacks are run on the twin; of each run the point of highest loss on the twin is kept, also where the twin holds out,
and the attacked network sees those. With Auto-PGD on the twin this is the attack that took SODEF from 71.28% to 64.20% on CIFAR-10
(RobustBench; Croce et al. 2022, arXiv 2202.13711).
"""

import torch
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from basin.config.kinds import AttackChoice, Choice
from basin.config.settings import Settings
from basin.threat.target import Target
from basin.types import Images, Labels

BLACK_BOX = True
NEEDS_TWIN = True


class Params(Settings):
    attacks: list[AttackChoice] = Field(min_length=1, description="a list of attacks to run on the twin, e.g. [{kind: apgd, loss: ce}]")

    @field_validator("attacks")
    @classmethod
    def _on_the_twin(cls, attacks: list[Choice]) -> list[Choice]:
        if any(getattr(attack.tables, "NEEDS_TWIN", False) for attack in attacks):
            raise PydanticCustomError("nested", "should hold attacks on the twin, which has no twin of its own. Take the transfer out.")
        return attacks


def fitted(params: Params, classes: int, randomised: bool = False) -> Params:
    """With each attack fitted to the twin, which is not random because the network is."""
    return params.model_copy(update={"attacks": [attack.fitted(classes) for attack in params.attacks]})


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    assert target.twin is not None, "given only to a model that has a twin (NEEDS_TWIN)"
    source = Target(target.twin, target.threat, features=getattr(target.twin, "features", None), room=target.room)
    best = target.incumbent(images)
    for attack in params.attacks:
        x = attack.module.perturb(attack.params, source, images, labels, generator)
        with torch.no_grad():
            best.offer(x, target.network(x), labels)
    return best.points
