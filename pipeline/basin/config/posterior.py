"""Parameters that are distributions, as params.yaml has them."""

from pydantic import Field

from basin.config.settings import Settings


class Posterior(Settings):
    """The distribution of every parameter, and how often a pass draws it."""

    scale: float = Field(
        0.1, gt=0, description="the positive scale to start from, as a multiple of the root mean square of the tensor that it belongs to"
    )
    floor: float = Field(0.0, ge=0, description="the least scale that a parameter can have, 0 or above")
    kl: float = Field(0.0, ge=0, description="the weight beta of the divergence from the prior, 0 for none")
    prior: float = Field(1.0, gt=0, description="the positive scale s of the prior N(0, s^2)")
    local: bool = Field(True, description="whether linear and convolutional layers draw their outputs in place of their weights")
    training_draws: int = Field(1, ge=1, description="a positive number of draws that a pass averages in training")
    inference_draws: int = Field(1, ge=1, description="a positive number of draws that the reported function averages")
