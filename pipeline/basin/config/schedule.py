"""How a phase of training is minimised, as params.yaml has it."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

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


class Perturbation(Settings):
    """The step that the weights take against the loss before each step down (basin/training/awp.py)."""

    gamma: float = Field(
        0.005, ge=0, description="its length over each layer's norm, 0 for none (authors: 0.01 with PGD, 0.005 with TRADES)"
    )
    warmup: int = Field(0, ge=0, description="the epochs before the first of it, 0 or above (the authors: 10 with TRADES)")


class Schedule(Settings):
    """How one phase is minimised."""

    epochs: int = Field(ge=1, description="a positive number of passes over the training images")
    batch: int = Field(128, ge=1, description="a positive number of images in a step")
    optimiser: Literal["adam", "sgd"] = Field("adam", description="adam, or sgd (Nesterov momentum 0.9)")
    rate: float = Field(1e-3, gt=0, description="the positive (peak) learning rate")
    policy: Literal["one_cycle", "constant", "multi_step", "cosine"] = Field(
        "constant",
        description="one_cycle (linear up for 30% of the steps, cosine down), constant, multi_step (times factor at each of milestones) or "
        "cosine (down to nothing)",
    )
    milestones: list[Annotated[float, Field(gt=0)]] = Field(
        [0.5, 0.75], min_length=1, description="a list of epochs, 1 or above, or of shares of them, below 1; multi_step alone uses it"
    )
    factor: float = Field(0.1, gt=0, lt=1, description="what the rate is multiplied by, above 0 and below 1; multi_step alone uses it")
    warmup: float = Field(0.0, ge=0, description="the first epochs, fewer than all, in which the rate rises linearly; 0 for none")
    clip: float | None = Field(None, gt=0, description="the largest 2-norm, above 0, that the gradient of a step may have; null: any")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty, 0 for none")
    epsilon: float = Field(1e-8, gt=0, description="Adam's positive denominator term")
    amsgrad: bool = Field(False, description="whether Adam keeps the running maximum of its second moment")
    average: Average | None = Field(None, description="the mean of the weights to end with, a table with its kind; null: the last weights")
    stopping: Stopping | None = Field(None, description="when to end early, a table with what to watch; null: with the last epoch")
    awp: Perturbation | None = Field(None, description="adversarial weight perturbation, a table with its gamma; null: none")
    precision: Literal["float32", "bf16"] = Field(
        "float32", description="float32, or bf16 (the backbone's passes in bfloat16; weights, head and losses stay in float32)"
    )
    compile: bool = Field(False, description="whether torch compiles the backbone's passes")

    @field_validator("milestones")
    @classmethod
    def _at_the_end_of_an_epoch(cls, milestones: list[float], others: Any) -> list[float]:
        if any(one > 1 and one != int(one) for one in milestones):
            raise PydanticCustomError("milestone", "an epoch is a whole number. Give whole epochs, or shares of them below 1.")
        if any(one >= 1 and one >= others.data.get("epochs", math.inf) for one in milestones):
            raise PydanticCustomError("milestone", "one comes after the last epoch. Give epochs before it, or shares of them below 1.")
        return milestones

    @field_validator("warmup")
    @classmethod
    def _rises_once_and_leaves_an_epoch(cls, warmup: float, others: Any) -> float:
        if warmup and others.data.get("policy") == "one_cycle":
            raise PydanticCustomError("warmup", "one_cycle rises by itself. Set it to 0, or choose another policy.")
        if warmup >= others.data.get("epochs", math.inf):
            raise PydanticCustomError("warmup", "takes all epochs. Give it fewer.")
        return warmup

    @field_validator("epsilon", "amsgrad")
    @classmethod
    def _of_adam(cls, value: float | bool, about: Any) -> float | bool:
        if about.data.get("optimiser") == "sgd" and value != cls.model_fields[about.field_name].default:
            raise PydanticCustomError("adam", "is Adam's, and sgd has none. Leave it out.")
        return value

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of step 0 <= `step` < `steps`. Milestones count from the beginning, `cosine` from the end of the warm-up."""
        up = 0.3 * steps if self.policy == "one_cycle" else round(self.warmup * steps / self.epochs)
        if step < up:
            return self.rate * (step + 1) / (up + 1)
        if self.policy in ("one_cycle", "cosine"):
            return self.rate * 0.5 * (1 + math.cos(math.pi * (step - up) / (steps - up)))
        if self.policy == "multi_step":
            ends = [max(1, round(self.epochs * one)) if one < 1 else one for one in self.milestones]
            return self.rate * self.factor ** sum(step >= end * steps / self.epochs for end in ends)
        return self.rate
