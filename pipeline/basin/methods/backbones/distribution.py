"""Any backbone, with every parameter a learnable distribution that is drawn anew in every pass: a randomised defence.

    features = f_w(x),    w = mu + sigma eps,    eps ~ N(0, I),    sigma = floor + softplus(rho)

f is the backbone `of`. The linear classifier on top consists of distributions too. mu and rho are trained by the training method's loss at
one draw (or `training_draws`) a step, plus beta KL[q || N(0, s^2 I)] / N where `kl` = beta > 0. With neither a divergence nor a floor the
scales shrink: noise only raises the loss. The equations are in basin/models/distribution.py.

Khan et al. 2019, "Non-Determinism in Neural Networks for Adversarial Robustness" (arXiv 1905.10906); the paper's choice of distribution
and of loss is not known to us (docs/methods/backbones/distribution.md).
"""

from typing import Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from basin.config.kinds import BackboneChoice, Choice
from basin.config.posterior import Posterior
from basin.models.distribution import Distribution
from basin.types import Features, Images, ImageShape


class Params(Posterior):
    of: BackboneChoice = Field(description="the backbone whose parameters are drawn: a table with its kind")

    @field_validator("of")
    @classmethod
    def _has_numbers_for_parameters(cls, of: Choice) -> Choice:
        if of.kind == "distribution":
            raise PydanticCustomError("nested", "is one of distributions already. Name the backbone itself.")
        return of


class Backbone(Distribution):
    """[n, c, h, w] -> [n, width], the width of the backbone `of`. Raises Mistake where that one does."""

    def __init__(self, params: Params, shape: ImageShape):
        network = params.of.module.Backbone(params.of.params, shape)
        super().__init__(network, params)
        self.width = network.width

    def forward(self, x: Images) -> Features:
        return super().forward(x)


def head(params: Params) -> dict[str, Any]:
    """A linear classifier of the same distributions."""
    return {"kind": "distribution", **params.model_dump(mode="json", exclude={"of"})}
