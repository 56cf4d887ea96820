"""ResNet of the CIFAR family (He et al. 2016, arXiv 1512.03385, section 4.2): depth 6k + 2, widths 16-32-64.

A 3x3 convolution, three stages of k basic blocks at full, half and quarter resolution, global average pooling. Shortcuts across
a change of width are 1x1 convolutions (the paper's option B; its CIFAR nets use zero padding, option A).
Batch normalisation: the reported function is evaluation mode.
"""

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import relu

from pipeline.types import Features, Images, ImageShape, Settings


class Params(Settings):
    depth: Literal[8, 14, 20, 32, 44, 56, 110] = Field(20, description="6k + 2: one of 8, 14, 20, 32, 44, 56, 110")
    width: int = Field(16, ge=1, description="the positive number of channels of the first stage; doubled twice")


class BasicBlock(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out),
        )  # fmt: skip
        same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out _ _"]:
        return relu(self.shortcut(x) + self.residual(x))


class Backbone(nn.Module):
    """[n, c, h, w] -> [n, 4 width]."""

    def __init__(self, params: Params, shape: ImageShape):
        super().__init__()
        k, w = (params.depth - 2) // 6, params.width
        widths = [w] * k + [2 * w] * k + [4 * w] * k
        strides = ([1] * k) + ([2] + [1] * (k - 1)) * 2
        self.stem = nn.Sequential(nn.Conv2d(shape[0], w, 3, padding=1, bias=False), nn.BatchNorm2d(w), nn.ReLU())
        self.blocks = nn.Sequential(*(BasicBlock(i, o, s) for i, o, s in zip([w, *widths], widths, strides)))
        self.width = 4 * w

    def forward(self, x: Images) -> Features:
        return self.blocks(self.stem(x)).mean((2, 3))
