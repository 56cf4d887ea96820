"""The threat model: which perturbations count. Everything that knows a norm is here."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.types import Images, PerImage, Radius, Settings

LOW, HIGH = 0.0, 1.0  # the pixel range; an attacked image stays inside it
TOLERANCE = 1e-6  # float32 rounding of clean + delta, in pixels scaled to [0, 1]


class ThreatModel(Settings):
    """An L-infinity ball around the clean image, cut with the pixel range [0, 1]."""

    norm: Literal["linf"] = Field(description="norm of the perturbation; linf is the only one so far")
    eps: Radius = Field(description="radius in pixels scaled to [0, 1], above 0 and at most 1; eight grey levels are written 8/255")

    def project(self, x: Images, clean: Images) -> Images:
        """The nearest point to `x` inside the ball around `clean` and inside the pixel range."""
        return torch.minimum(torch.maximum(x, clean - self.eps), clean + self.eps).clamp(LOW, HIGH)

    def distance(self, x: Images, clean: Images) -> PerImage:
        """The norm of each image's perturbation, in pixels scaled to [0, 1]."""
        return (x - clean).flatten(1).abs().amax(1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of unit norm along which a linear function with this gradient rises fastest."""
        return gradient.sign()

    def random_point(self, clean: Images, generator: torch.Generator) -> Images:
        """A uniform draw from the ball, cut to the pixel range."""
        delta = torch.empty_like(clean).uniform_(-self.eps, self.eps, generator=generator)
        return self.project(clean + delta, clean)

    def of_radius(self, eps: float) -> "ThreatModel":
        """The same norm with another radius."""
        return self.model_copy(update={"eps": eps})

    def __str__(self) -> str:
        return f"{self.norm}-{self.eps:.4g}"
