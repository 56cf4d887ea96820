"""AutoAttack by its authors (Croce & Hein 2020, arXiv 2003.01690): pyautoattack's attacks, in its order, with its settings.

The number that the literature quotes. White-box, then black-box: `standard` takes 1,900 gradients and 5,000 queries of an image that holds.

    standard    APGD on CE; then targeted at 9 classes: APGD on DLR, FAB; then Square
    plus        APGD on CE and on DLR, FAB (5 restarts each), Square, targeted APGD and FAB
    rand        APGD on CE and on DLR, each gradient the mean of 20 passes: for a random network

An image that one attack breaks is not given to the next. What needs more classes is left out: DLR needs three, targeted DLR four. Where
passes over the same images differ the network is random: then `rand` is run whatever the version, on all images, and the points of highest
loss are taken, not those that one pass misclassified.
"""

import logging
from typing import TYPE_CHECKING, Literal, get_args

import torch
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch.nn.functional import normalize

from basin.config.settings import Settings
from basin.errors import Mistake
from basin.threat import foreign
from basin.threat.target import Target
from basin.types import Images, Labels, Network

if TYPE_CHECKING:
    from pyautoattack import AutoAttack

log = logging.getLogger(__name__)
Name = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
CLASSES = {"apgd-dlr": 3, "apgd-t": 4}  # needed by a loss
VERSIONS: dict[str, list[Name]] = {
    "standard": ["apgd-ce", "apgd-t", "fab-t", "square"],
    "plus": ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"],
    "rand": ["apgd-ce", "apgd-dlr"],
}
PASSES, DIFFERENCE = 5, 1e-4  # AutoAttack's test of randomness: passes compared, distance of logits scaled to norm 1


class Params(Settings):
    version: Literal["standard", "plus", "rand", "custom"] = Field("standard", description="standard, plus, rand, or custom")
    attacks: list[Name] = Field(
        [],
        description=f"with version custom a list of attacks in order, of {', '.join(get_args(Name))}; with another those of it that are "
        "run, [] for all",
    )

    @model_validator(mode="after")
    def _attacks_fit_the_version(self) -> "Params":
        if self.version == "custom" and not self.attacks:
            raise PydanticCustomError("attacks", "version custom has no attacks of its own. Give attacks.")
        if others := [name for name in self.attacks if name not in VERSIONS.get(self.version, self.attacks)]:
            raise PydanticCustomError("attacks", f"version {self.version} has no {', '.join(others)}. Use version: custom.")  # type: ignore[arg-type]
        return self


def fitted(params: Params, classes: int, randomised: bool = False) -> Params:
    """`rand` for a random network, and without attacks whose loss needs more classes. Raises Mistake where none is left."""
    version = "rand" if randomised else params.version
    whole = VERSIONS.get(version, params.attacks)
    asked = params.attacks if params.attacks and version == params.version else whole
    left = [name for name in asked if CLASSES.get(name, 2) <= classes]
    if not left:
        raise Mistake(f"attack autoattack: all of its attacks need more classes (got {', '.join(asked)} on {classes}). Give apgd-ce.")
    if left == asked and version == params.version:
        return params
    return Params(version=version) if left == whole and version in VERSIONS else Params(version=version, attacks=left)


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    """The point that broke each image, judged again here, or else the clean image. Raises Mistake where no attack is left."""
    network, best = foreign.sealed(target.network), target.incumbent(images)
    logits = network(images)
    best.offer(images, logits, labels)
    if is_random := params.version != "rand" and differs(network, images):
        log.warning(
            "attack autoattack: the network is random, passes over the same images differ; running rand instead of %s", params.version
        )
    params = fitted(params, logits.shape[1], is_random)
    with foreign.seeded(generator) as seed:
        suite = _suite(params, target, network, seed, images.device)
        for name in params.attacks or VERSIONS[params.version]:
            held = torch.ones_like(best.broken) if params.version == "rand" else ~best.broken
            rows = held.nonzero().flatten()
            if len(rows):
                x = _run(suite, name, images[rows], labels[rows], logits.shape[1] - 1)
                x = target.threat.project(torch.where(x.isfinite(), x, images[rows]), images[rows])
                best.offer(x, network(x), labels[rows], rows)
    return best.points


@torch.no_grad()
def differs(network: Network, images: Images) -> bool:
    """Whether passes over the same images differ."""
    first, *others = (normalize(network(images), dim=1) for _ in range(PASSES))
    return any(bool(((other - first).norm(dim=1) > DIFFERENCE).any()) for other in others)


def _suite(params: Params, target: Target, network: Network, seed: int, device: torch.device) -> "AutoAttack":
    """AutoAttack's own object, for its attacks and their settings; its loop, which traces the interpreter, is not used."""
    from pyautoattack import AutoAttack

    threat = target.threat
    suite = AutoAttack(
        network, attacks=params.attacks, device=device, eps=threat.eps, norm=foreign.NORM[threat.norm], seed=seed, version="custom"
    )
    suite.verbose = False
    suite.apgd.logger = suite.apgd_targeted.logger = _silent()  # says for each batch what basin/evaluation/diagnostics.py says once
    suite._set_version(params.version)
    suite.apgd.use_largereps = suite.apgd_targeted.use_largereps = threat.norm == "l1"  # in `standard` alone by itself
    return suite


def _silent() -> logging.Logger:
    """A logger of nobody's."""
    logger = logging.Logger("pyautoattack")
    logger.disabled = True
    return logger


def _run(suite: "AutoAttack", name: Name, x: Images, y: Labels, others: int) -> Images:
    """One attack, set as AutoAttack's loop sets it; `others` is how many wrong classes there are."""
    if name in ("apgd-ce", "apgd-dlr"):
        suite.apgd.loss = name.removeprefix("apgd-")
        return suite.apgd.perturb(x, y, best_loss=suite.apgd.eot_iter > 1)
    if name == "apgd-t":
        suite.apgd_targeted.n_target_classes = min(suite.apgd_targeted.n_target_classes, others)
        return suite.apgd_targeted.perturb(x, y)
    if name == "square":
        return suite.square.perturb(x, y)
    suite.fab.targeted = name == "fab-t"
    suite.fab.n_target_classes = min(suite.fab.n_target_classes, others)
    suite.fab.n_restarts = 1 if suite.fab.targeted else suite.fab.n_restarts
    return suite.fab.perturb(x, y)
