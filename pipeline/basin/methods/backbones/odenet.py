"""ODE-Net (Chen et al. 2018, arXiv 1806.07366): one ODE on feature maps in place of a stack of residual blocks, or that stack.

    z(0) = stem(x): conv3x3, then for each halving: GN, ReLU, conv4x4 of stride 2

    blocks: ode         dz/dt = f(t, z) = GN(C2(t, relu(GN(C1(t, relu(GN(z)))))))     from 0 to T
    blocks: residual    z <- z + c2(relu(GN(c1(relu(GN(z))))))                         `residual_blocks` times

    features = spatial mean of relu(GN(z))

C(t, .) is a 3x3 convolution that sees t as one more channel, c one that does not; GN is group normalisation, so that training and
evaluation mode are the same function. The two forms are the comparison of Chu et al. 2020 (arXiv 2012.02452); the layers are those of
torchdiffeq's example odenet_mnist.py. The default solver is rk4 with fixed steps: those of dopri5, which the example uses and which can
be chosen, depend on the whole batch, and so do an image's features then (docs/decisions/0005).
"""

from math import gcd
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import relu

from basin.config.settings import Settings
from basin.config.solver import Solver
from basin.errors import Mistake
from basin.models.ode import Flow
from basin.types import Features, Images, ImageShape

Maps = Float[Tensor, "n c h w"]
SMALLEST = 2  # height and width of the maps: over one pixel a group of two channels is normalised to its signs, of one channel to 0


class Params(Settings):
    blocks: Literal["ode", "residual"] = Field("ode", description="ode (one flow) or residual (its twin, a stack of residual blocks)")
    channels: int = Field(64, ge=1, description="the positive number of channels, and the width of the features")
    halvings: int = Field(2, ge=0, description="how often the stem halves the image, 0 or more (the example: 2)")
    T: float = Field(1.0, gt=0, description="positive integration time; blocks: ode alone uses it")
    solver: Solver = Field(Solver(steps=4), description="how the ODE is solved; blocks: ode alone uses it")
    residual_blocks: int = Field(6, ge=1, le=1000, description="blocks, from 1 to 1000 (the example: 6); blocks: residual alone uses it")


def norm(channels: int) -> nn.GroupNorm:
    """32 groups, or as many of them as divide the channels."""
    return nn.GroupNorm(gcd(32, channels), channels)


class TimeConv(nn.Module):
    """C(t, z): a 3x3 convolution of z and a channel that is t everywhere."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, t: Tensor | float, z: Maps) -> Maps:
        return self.conv(torch.cat([torch.ones_like(z[:, :1]) * t, z], 1))


class Drift(nn.Module):
    """f(t, z)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (norm(channels) for _ in range(3))
        self.conv1, self.conv2 = TimeConv(channels), TimeConv(channels)

    def forward(self, t: Tensor | float, z: Maps) -> Maps:
        z = self.conv1(t, relu(self.norm1(z)))
        return self.norm3(self.conv2(t, relu(self.norm2(z))))


class ResidualBlock(nn.Module):
    """z + c2(relu(GN(c1(relu(GN(z)))))) (He et al. 2016, arXiv 1603.05027, with group normalisation)."""

    def __init__(self, channels: int):
        super().__init__()
        self.residual = nn.Sequential(
            norm(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            norm(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, z: Maps) -> Maps:
        return z + self.residual(z)


class Backbone(nn.Module):
    """[n, c, h, w] -> [n, channels]. Raises Mistake where the image is too small for that many halvings."""

    def __init__(self, params: Params, shape: ImageShape):
        super().__init__()
        n = params.channels
        check(params.halvings, shape)
        self.stem = nn.Sequential(nn.Conv2d(shape[0], n, 3))
        for _ in range(params.halvings):
            self.stem.extend([norm(n), nn.ReLU(), nn.Conv2d(n, n, 4, 2, 1)])
        self.blocks: nn.Module
        if params.blocks == "ode":
            self.blocks = Flow(Drift(n), params.T, params.solver, autonomous=False)
        else:
            self.blocks = nn.Sequential(*(ResidualBlock(n) for _ in range(params.residual_blocks)))
        self.norm = norm(n)
        self.width = n

    def forward(self, x: Images) -> Features:
        return relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3))


def check(halvings: int, shape: ImageShape) -> None:
    """Raise Mistake where the stem's maps would be smaller than 2x2 pixels."""
    side = min(shape[1:]) - 2  # the first convolution is not padded
    if side >> halvings >= SMALLEST:
        return
    most = side.bit_length() - SMALLEST.bit_length() if side >= SMALLEST else -1
    advice = (
        f"Give at most {most}." if most >= 0 else "Choose another backbone: images of fewer than 4x4 pixels are too small for this one."
    )
    raise Mistake(
        f"backbone.halvings: {halvings} leave maps of fewer than {SMALLEST}x{SMALLEST} pixels, too few to normalise in groups "
        f"(got shape {shape}). {advice}"
    )
