"""ResNet for small images (He et al. 2016, arXiv 1512.03385): a 3x3 stem, stages of basic blocks, global average pooling.

    depth       stages   blocks a stage   widths             features
    6k + 2      3        k                16-32-64           64        the paper's CIFAR family (section 4.2)
    18          4        2                64-128-256-512     512       its 18-layer net (table 1) with the stem above for 7x7 and pooling

The first stage works at full resolution, each later one halves it. Shortcuts across a change of width are 1x1 convolutions (the
paper's option B; its CIFAR nets use zero padding, option A). Batch normalisation: the reported function is evaluation mode.
"""

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import relu

from basin.config.settings import Settings
from basin.types import Features, Images, ImageShape


class Params(Settings):
    depth: Literal[8, 14, 18, 20, 32, 44, 56, 110] = Field(20, description="one of 8, 14, 20, 32, 44, 56, 110 (6k + 2), or 18")
    width: int | None = Field(
        None,
        ge=1,
        description="the channels of the first stage, doubled in each later one; null: 64 at depth 18, 16 at the others",
    )


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
    """[n, c, h, w] -> [n, 4 width], at depth 18 [n, 8 width]."""

    def __init__(self, params: Params, shape: ImageShape):
        super().__init__()
        stages, k, w = (4, 2, 64) if params.depth == 18 else (3, (params.depth - 2) // 6, 16)
        w = params.width or w
        widths = [w << stage for stage in range(stages) for _ in range(k)]
        strides = [2 if stage and not block else 1 for stage in range(stages) for block in range(k)]
        self.stem = nn.Sequential(nn.Conv2d(shape[0], w, 3, padding=1, bias=False), nn.BatchNorm2d(w), nn.ReLU())
        self.blocks = nn.Sequential(*(BasicBlock(i, o, s) for i, o, s in zip([w, *widths], widths, strides)))
        self.width = widths[-1]

    def forward(self, x: Images) -> Features:
        return self.blocks(self.stem(x)).mean((2, 3))
