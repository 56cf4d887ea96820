"""MART (Wang et al. 2020, "Improving Adversarial Robustness Requires Revisiting Misclassified Examples", ICLR 2020).

L = mean [ BCE(p(x'), y) + lambda KL(p(x) || p(x')) (1 - p_y(x)) ]
BCE(p, y) = -log p_y - log(1 - max_{k != y} p_k)

x' is projected gradient descent's point on the cross-entropy. Images that are misclassified to begin with weigh most in the second term.
"""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from basin.config.settings import Settings
from basin.methods.attacks import pgd
from basin.threat.ball import ThreatModel
from basin.threat.target import Target
from basin.training.awp import found
from basin.types import Images, Labels, Network


class Params(Settings):
    lambda_: float = Field(5.0, ge=0, alias="lambda", description="weight of the second term, 0 or above (the paper: 5)")
    steps: int = Field(10, ge=1, description="a positive number of attack steps for each batch")
    step: float = Field(0.25, gt=0, description="positive step length as a share of the radius")


def loss(params: Params, network: Network, images: Images, labels: Labels, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    inner = pgd.Params(steps=params.steps, step=params.step)
    x = found(lambda: pgd.ascend(inner, Target(network, threat), images, labels, generator), generator)
    log_p, log_p_x = log_softmax(network(images), 1), log_softmax(network(x), 1)
    y = labels[:, None]
    runner_up = log_p_x.detach().scatter(1, y, -torch.inf).argmax(1, keepdim=True)
    bce = -log_p_x.gather(1, y)[:, 0] - log_p_x.scatter(1, runner_up, -torch.inf).logsumexp(1)  # of the others: log(1 - p), and finite
    kl = kl_div(log_p_x, log_p, reduction="none", log_target=True).sum(1)
    return (bce + params.lambda_ * kl * (1 - log_p.exp().gather(1, y)[:, 0])).mean()
