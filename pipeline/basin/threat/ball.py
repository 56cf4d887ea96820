"""The threat model: which perturbations count. Everything that knows a norm is here.

In L1 a ball that is cut and then clamped is not the ball cut with the pixel range, so projection and step are those of Croce & Hein (2021,
arXiv 2103.01208): the nearest point of the intersection, and a step on a share of the pixels, of those that can still move.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from basin.config.threat import HIGH, LOW, Threat
from basin.threat import l1
from basin.types import Images, PerImage

TOLERANCE = 1e-6  # float32 rounding of clean + delta, in pixels scaled to [0, 1]
INSIDE = 1 - 1e-6  # an L2 projection ends this share of the radius from the centre: rounding does not carry it out again

DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}  # the order of the dual norm


class ThreatModel(Threat):
    """A ball around the clean image, in L-infinity, L2 or L1, cut with the pixel range [0, 1]."""

    @classmethod
    def of(cls, threat: Threat) -> "ThreatModel":
        """The ball of a table of params.yaml."""
        return cls(norm=threat.norm, eps=threat.eps)

    def project(self, x: Images, clean: Images) -> Images:
        """A point inside the ball around `clean` and inside the pixel range: x itself where it is one.

        In L-infinity and L1 the nearest. In L2 the nearest of the ball, then of the pixel range, which holds the clean image, so that the
        second step leads no further from it.
        """
        return self.onto(clean)(x)

    def onto(self, clean: Images) -> Callable[[Images], Images]:
        """The projection into the ball around `clean`, for many points: its bounds are found once."""
        if self.norm == "linf":
            low, high = (clean - self.eps).clamp_(LOW, HIGH), (clean + self.eps).clamp_(LOW, HIGH)
            return lambda x: x.clamp(low, high)
        return lambda x: self._projected(x, clean)

    def _projected(self, x: Images, clean: Images) -> Images:
        if self.norm == "l1":
            return l1.project(x, clean, (self.eps * x.new_ones(1, dtype=torch.float64)).view(-1, 1))
        distance = self.distance(x, clean).view(-1, 1, 1, 1)
        return torch.where(distance > self.eps, clean + (x - clean) * (self.eps * INSIDE / distance), x).clamp(LOW, HIGH)

    def distance(self, x: Images, clean: Images) -> PerImage:
        """The norm of each image's perturbation, in pixels scaled to [0, 1]."""
        delta = (x - clean).flatten(1)
        if self.norm == "l1":
            return delta.abs().sum(1, dtype=torch.float64).to(x.dtype)
        return delta.abs().amax(1) if self.norm == "linf" else delta.norm(dim=1)

    def dual(self, gradient: Tensor) -> PerImage:
        """The dual norm of each image's gradient: by how much a linear function rises along the steepest direction of unit norm."""
        return gradient.flatten(1).norm(p=DUAL[self.norm], dim=1)

    def steepest(self, gradient: Tensor, x: Images | None = None) -> Tensor:
        """The direction of unit norm along which a linear function with this gradient rises fastest; zero where the gradient is.

        In L1 that would be one pixel, which soon can move no further: instead the largest fifth of them share the step as |g|, and of the
        point `x` those alone that the pixel range does not hold. It rises by at least the mean of their |g|, at most by the dual norm.
        """
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l1":
            g = gradient if x is None else l1.movable(gradient, x)
            return l1.unit(l1.largest(g, torch.full((len(g), 1), l1.SPARSE, device=g.device)))
        g = gradient.flatten(1)
        peak = g.abs().amax(1, keepdim=True)
        g = g / torch.where(peak > 0, peak, 1)  # first, because squares of small gradients are zero in float32
        return (g / g.norm(dim=1, keepdim=True).clamp_min(1)).view_as(gradient)

    def ascend(self, x: Images, gradient: Tensor, share: float) -> Images:
        """x moved by this share of the radius along the steepest direction; from a point of the ball it may lead out."""
        if self.norm == "linf":
            return torch.add(x, gradient.sign(), alpha=share * self.eps)  # in one pass over the images
        return x + share * self.eps * self.steepest(gradient, x)

    def random_point(self, clean: Images, generator: torch.Generator) -> Images:
        """A uniform draw from the ball, cut to the pixel range."""
        if self.norm == "linf":
            delta = torch.empty_like(clean).uniform_(-self.eps, self.eps, generator=generator)
        elif self.norm == "l1":
            delta = self.eps * l1.draw(clean, generator)
        else:
            towards = self.steepest(torch.empty_like(clean).normal_(generator=generator))
            share = torch.rand((len(clean), 1, 1, 1), generator=generator, device=clean.device) ** (1 / clean[0].numel())
            delta = self.eps * share * towards
        return self.project(clean + delta, clean)

    def of_radius(self, eps: float) -> "ThreatModel":
        """The same norm with another radius."""
        return self.model_copy(update={"eps": eps})

    def multiples(self, times: Sequence[float]) -> list[float]:
        """Radii of so many times this one, to six digits; in L-infinity at most the pixel range."""
        most = HIGH - LOW if self.norm == "linf" else math.inf
        return list(dict.fromkeys(min(float(f"{one * self.eps:.6g}"), most) for one in times))

    def within_l2(self, image: Tensor) -> float:
        """The radius of the least L2 ball that holds this one, for an image of this size."""
        return self.eps * (image.numel() ** 0.5 if self.norm == "linf" else 1.0)

    def whole_range(self, images: Images) -> "ThreatModel":
        """The same norm with a radius that leads from any image of this shape to any other."""
        sizes = {"linf": 1.0, "l2": images[0].numel() ** 0.5, "l1": float(images[0].numel())}
        return self.of_radius((HIGH - LOW) * sizes[self.norm])
