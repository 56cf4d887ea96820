"""The threat model: which perturbations count. Everything that knows a norm is here.

L1 is left out: its ball cut with the pixel range is no ball cut and then clamped, so that each attack would need steps of its own
(Croce & Hein 2021, arXiv 2103.01208).
"""

import torch
from torch import Tensor

from basin.config.threat import HIGH, LOW, Threat
from basin.types import Images, PerImage

TOLERANCE = 1e-6  # float32 rounding of clean + delta, in pixels scaled to [0, 1]
INSIDE = 1 - 1e-6  # an L2 projection ends this share of the radius from the centre: rounding does not carry it out again


class ThreatModel(Threat):
    """A ball around the clean image, in L-infinity or L2, cut with the pixel range [0, 1]."""

    @classmethod
    def of(cls, threat: Threat) -> "ThreatModel":
        """The ball of a table of params.yaml."""
        return cls(norm=threat.norm, eps=threat.eps)

    def project(self, x: Images, clean: Images) -> Images:
        """A point inside the ball around `clean` and inside the pixel range: x itself where it is one.

        In L-infinity the nearest. In L2 the nearest of the ball, then of the pixel range, which holds the clean image, so that the
        second step leads no further from it.
        """
        if self.norm == "linf":
            return torch.minimum(torch.maximum(x, clean - self.eps), clean + self.eps).clamp(LOW, HIGH)
        distance = self.distance(x, clean).view(-1, 1, 1, 1)
        return torch.where(distance > self.eps, clean + (x - clean) * (self.eps * INSIDE / distance), x).clamp(LOW, HIGH)

    def distance(self, x: Images, clean: Images) -> PerImage:
        """The norm of each image's perturbation, in pixels scaled to [0, 1]."""
        delta = (x - clean).flatten(1)
        return delta.abs().amax(1) if self.norm == "linf" else delta.norm(dim=1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of unit norm along which a linear function with this gradient rises fastest; zero where the gradient is."""
        if self.norm == "linf":
            return gradient.sign()
        g = gradient.flatten(1)
        peak = g.abs().amax(1, keepdim=True)
        g = g / torch.where(peak > 0, peak, 1)  # first, because squares of small gradients are zero in float32
        return (g / g.norm(dim=1, keepdim=True).clamp_min(1)).view_as(gradient)

    def random_point(self, clean: Images, generator: torch.Generator) -> Images:
        """A uniform draw from the ball, cut to the pixel range."""
        if self.norm == "linf":
            delta = torch.empty_like(clean).uniform_(-self.eps, self.eps, generator=generator)
        else:
            towards = self.steepest(torch.empty_like(clean).normal_(generator=generator))
            share = torch.rand((len(clean), 1, 1, 1), generator=generator, device=clean.device) ** (1 / clean[0].numel())
            delta = self.eps * share * towards
        return self.project(clean + delta, clean)

    def of_radius(self, eps: float) -> "ThreatModel":
        """The same norm with another radius."""
        return self.model_copy(update={"eps": eps})

    def whole_range(self, images: Images) -> "ThreatModel":
        """The same norm with a radius that leads from any image of this shape to any other."""
        return self.of_radius((HIGH - LOW) * (1.0 if self.norm == "linf" else images[0].numel() ** 0.5))
