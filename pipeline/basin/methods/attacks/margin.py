"""Steepest steps on a margin, their length cooled by a cosine. White-box, restarts x (steps + 1) gradients.

    x_{k+1} = P(x_k + eta_k s(grad f(x_k)))        eta_k = eps (1 + cos(pi k / K)), k = 0 .. K - 1, K = steps

f is max_{i != y} z_i - z_y of the logits z, or of the probabilities p = softmax z: then it is the second half of the probability margin
attack (Xie et al. 2024, arXiv 2411.15210). x_0 is a random point of the ball; s is the sign in L-infinity, g / ||g|| in L2. An image that
is misread is done.
"""

from typing import Literal

import torch
from pydantic import Field

from basin.config.settings import Settings
from basin.threat import target as losses
from basin.threat.target import Target, cooled, follow
from basin.types import Images, Labels

SEARCHES = True


class Params(Settings):
    of: Literal["logits", "probabilities"] = Field("probabilities", description="of what the margin is taken: logits or probabilities")
    steps: int = Field(20, ge=1, description="a positive number of gradient steps")
    restarts: int = Field(1, ge=1, description="a positive number of starts")


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    held = {"logits": losses.margin, "probabilities": losses.probability_margin}[params.of]
    best, threat = target.incumbent(images), target.threat
    steps = [cooled(lambda z, y: -held(z, y), params.steps, 2.0) for _ in range(params.restarts)]
    follow(target, ((threat.random_point(images, generator), run) for run in steps), images, labels, best)
    return best.points
