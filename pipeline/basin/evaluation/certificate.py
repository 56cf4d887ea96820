"""Radii within which no attack can succeed, from a Lipschitz constant before the last layer and the margin after it.

    r(x) = min over j of (l_y - l_j) / (L ||V_y - V_j||_2),    l = V h(x) + c,  ||h(x') - h(x)||_2 <= L ||x' - x||_2

(Tsuzuku et al. 2018, arXiv 1802.04034.) It holds for the reported function itself, up to float32's rounding, and for L2 alone; a point at
||x' - x||_inf <= eps lies within eps sqrt(d).
"""

from typing import Any

import torch

from basin.errors import Mistake
from basin.evaluation.outcomes import Outcomes, interval, mean
from basin.models.classifier import Classifier
from basin.models.lipschitz import between, lipschitz
from basin.threat.ball import ThreatModel
from basin.types import Images, Labels, PerImage

ROUNDING = 1 - 1e-4  # of a radius, for float32


def radii(model: Classifier, images: Images, labels: Labels, batch: int) -> PerImage | None:
    """The L2 radius of each image, in pixels scaled to [0, 1]: 0 where it is misread. None where L is not known."""
    return None if (L := lipschitz(model)) is None else _within(model, L, images, labels, batch)


@torch.no_grad()
def _within(model: Classifier, L: float, images: Images, labels: Labels, batch: int) -> PerImage:
    apart, found = between(model), []
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        logits, y = model(x.to(apart.device)), y.to(apart.device)
        margin = (logits.gather(1, y[:, None]) - logits) / (L * apart[y])
        found.append(margin.scatter(1, y[:, None], torch.inf).amin(1).clamp_min(0) * ROUNDING)
    return torch.cat(found).cpu()


def certify(model: Classifier, outcomes: Outcomes, threat: ThreatModel, batch: int) -> dict[str, Any] | None:
    """Take the radii of all images into their outcomes; L, and the share of the images that hold against any attack of the threat model.

    None where L is not known. Raises Mistake where an attack broke an image within its radius: then the bound, or the attack, is wrong.
    """
    if (L := lipschitz(model)) is None:
        return None
    outcomes.radius = _within(model, L, outcomes.images, outcomes.labels, batch)
    _hold(outcomes, outcomes.radius)
    held = outcomes.radius >= threat.within_l2(outcomes.images[0])
    return {"lipschitz": L, "robust": mean(held), "interval": interval(held)}


def _hold(outcomes: Outcomes, radii: PerImage) -> None:
    distance = (outcomes.points - outcomes.images).flatten(1).norm(dim=1).cpu()
    broken = ((outcomes.share < 1).cpu() & (distance < radii)).nonzero().flatten().tolist()
    if broken:
        i = broken[0]
        raise Mistake(
            f"certificate: contradicted at {len(broken)} images (got image {int(outcomes.index[i])}, broken by {outcomes.attack[i]} at "
            f"{distance[i]:.4g} of {radii[i]:.4g}). A Lipschitz constant of this model is too low: mend its layer's `lipschitz`."
        )
