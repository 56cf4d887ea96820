"""How a phase of training is minimised, as params.yaml has it."""

import math
from typing import Literal

from pydantic import Field

from basin.config.settings import Settings


class Average(Settings):
    """Which mean of its weights a phase ends with."""

    kind: Literal["ema", "swa"] = Field(description="ema (exponential, of every step) or swa (equal, of the ends of the last epochs)")
    decay: float = Field(0.999, ge=0, lt=1, description="the share, below 1, of the mean that a step leaves; ema alone uses it")
    start: float = Field(0.5, ge=0, lt=1, description="the share, below 1, of the epochs after which the mean begins; swa alone uses it")


class Stopping(Settings):
    """When a phase ends early. It ends with the weights of its best epoch on the validation images (Rice et al. 2020, arXiv 2002.11569)."""

    watch: Literal["accuracy", "robust"] = Field(description="accuracy, or robust (accuracy under ten steps of PGD)")
    patience: int = Field(ge=1, description="a positive number of epochs without a better one, after which the phase ends")
    images: int = Field(500, ge=1, description="a positive number of validation images that are attacked; robust alone uses it")


class Schedule(Settings):
    """How one phase is minimised."""

    epochs: int = Field(ge=1, description="a positive number of passes over the training images")
    batch: int = Field(128, ge=1, description="a positive number of images in a step")
    optimiser: Literal["adam", "sgd"] = Field("adam", description="adam, or sgd (Nesterov momentum 0.9)")
    rate: float = Field(1e-3, gt=0, description="the positive (peak) learning rate")
    policy: Literal["one_cycle", "constant"] = Field(
        "constant", description="one_cycle (linear up for 30% of the steps, cosine down) or constant"
    )
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty, 0 for none")
    epsilon: float = Field(1e-8, gt=0, description="Adam's positive denominator term")
    amsgrad: bool = Field(False, description="whether Adam keeps the running maximum of its second moment")
    average: Average | None = Field(None, description="the mean of the weights to end with, a table with its kind; null: the last weights")
    stopping: Stopping | None = Field(None, description="when to end early, a table with what to watch; null: with the last epoch")
    precision: Literal["float32", "bf16"] = Field(
        "float32", description="float32, or bf16 (the backbone's passes in bfloat16; weights, head and losses stay in float32)"
    )
    compile: bool = Field(False, description="whether torch compiles the backbone's passes")

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of step 0 <= `step` < `steps`."""
        if self.policy == "constant":
            return self.rate
        up = 0.3 * steps
        return self.rate * ((step + 1) / (up + 1) if step < up else 0.5 * (1 + math.cos(math.pi * (step - up) / (steps - up))))
