"""Feature attack (Croce et al. 2022, arXiv 2202.13711, on SODEF). White-box on the backbone alone: it never differentiates the head.

    x_{k+1} = P(x_k - alpha_k s(d ||h(x_k) - h(x_g)||_1 / d x_k))        alpha_k = step eps (1 - k / steps), x_0 random in the ball

h is the attacked classifier's backbone. x_g, the guide, is an image of the same batch with another prediction: where h(x_g) is reached,
that is the prediction, whatever the head does, so a head with a wrong, vanishing or masked gradient hides nothing. Guides of the runner-up
class come first, the nearest in h before others; each start takes the next. Of all points visited the best is returned.
"""

import torch
from pydantic import Field
from torch import Tensor

from basin.config.settings import Settings
from basin.errors import Mistake
from basin.threat.target import Target, gradient
from basin.types import Images, Labels, Logits

NEEDS_FEATURES = True


class Params(Settings):
    steps: int = Field(50, ge=1, description="a positive number of gradient steps a guide")
    step: float = Field(2.0, gt=0, description="positive first step length as a share of the radius; it falls to 0 over the steps")
    guides: int = Field(4, ge=1, description="a positive number of guides an image, each with a start of its own (the authors' code: 4)")


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    if (features := target.features) is None:
        raise Mistake("attack features: it needs the features of the attacked model (got none). Attack a classifier with a backbone.")
    best = target.incumbent(images)
    with torch.no_grad():
        h, z = features(images).flatten(1), target.network(images)
    best.offer(images, z, labels)
    order, usable = guides(h, z, labels)
    for k in range(min(params.guides, len(images))):
        rows = (~best.broken & usable[:, k]).nonzero().flatten()
        if not len(rows):
            break
        x, clean, y, guide = target.threat.random_point(images[rows], generator), images[rows], labels[rows], h[order[rows, k]]
        for step in torch.linspace(params.step, 0, params.steps + 1)[:-1].tolist():
            g, _, _ = gradient(features, x, y, lambda z, _: (z.flatten(1) - guide).abs().sum(1))  # noqa: B023
            x = target.threat.project(target.threat.ascend(x, -g, step), clean)
            with torch.no_grad():
                best.offer(x, target.network(x), y, rows)
    return best.points


def guides(h: Tensor, z: Logits, labels: Labels) -> tuple[Tensor, Tensor]:
    """(order [n, n], usable [n, n]): for each image the batch's images as guides, best first, and which of these have another prediction.

    `h` are the batch's features, `z` its logits. An image with no guide is left alone; so is one that stands by itself.
    """
    prediction = z.argmax(1)
    runner_up = z.scatter(1, labels[:, None], -torch.inf).argmax(1)
    rank = (prediction != runner_up[:, None]).long() + 2 * (prediction == labels[:, None])
    near = torch.cdist(h, h, p=1.0).argsort(dim=1, stable=True)
    order = near.gather(1, rank.gather(1, near).argsort(dim=1, stable=True))
    return order, rank.gather(1, order) < 2
