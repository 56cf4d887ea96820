"""ResNet with pre-activation (He et al. 2016, arXiv 1603.05027): normalisation and ReLU before each convolution, shortcuts left clear.

    depth       stages   blocks a stage   widths             features
    6k + 2      3        k                16-32-64           64
    18          4        2                64-128-256-512     512       the net of most papers on adversarial training since 2020

The equations are in basin/models/preactivation.py.
"""

from typing import Literal

from pydantic import Field

from basin.config.settings import Settings
from basin.models.preactivation import Residual
from basin.types import Features, Images, ImageShape


class Params(Settings):
    depth: Literal[8, 14, 18, 20, 32, 44, 56, 110] = Field(18, description="one of 8, 14, 20, 32, 44, 56, 110 (6k + 2), or 18")
    width: int | None = Field(
        None, ge=1, description="the channels of the first stage, doubled in each later one; null: 64 at depth 18, 16 at the others"
    )


class Backbone(Residual):
    """[n, c, h, w] -> [n, 4 width], at depth 18 [n, 8 width]."""

    def __init__(self, params: Params, shape: ImageShape):
        stages, blocks, width = (4, 2, 64) if params.depth == 18 else (3, (params.depth - 2) // 6, 16)
        width = params.width or width
        super().__init__(shape[0], width, [width << stage for stage in range(stages)], blocks)

    def forward(self, x: Images) -> Features:
        return super().forward(x)
