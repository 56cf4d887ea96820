"""Wide residual net, WRN-depth-widen (Zagoruyko & Komodakis 2016, arXiv 1605.07146): few blocks with many channels. No dropout.

    stem 16;    3 stages of (depth - 4) / 6 blocks, of 16 widen, 32 widen and 64 widen channels;    64 widen features

28-10 has 36.5 million parameters, 34-10, the net of the tables of robust accuracy, 46.2. Blocks as in basin/models/preactivation.py.
"""

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from basin.config.settings import Settings
from basin.models.preactivation import Residual
from basin.types import Features, Images, ImageShape


class Params(Settings):
    depth: int = Field(28, ge=10, description="the number of layers, 6k + 4: 10, 16, 22, 28, 34, 40, ...")
    widen: int = Field(10, ge=1, description="a positive factor of the channels (the paper: 1 to 12)")

    @field_validator("depth")
    @classmethod
    def _is_of_whole_blocks(cls, depth: int) -> int:
        if (depth - 4) % 6:
            raise PydanticCustomError("depth", "the depth is 6k + 4. Give 10, 16, 22, 28, 34 or 40.")
        return depth


class Backbone(Residual):
    """[n, c, h, w] -> [n, 64 widen]."""

    def __init__(self, params: Params, shape: ImageShape):
        super().__init__(shape[0], 16, [width * params.widen for width in (16, 32, 64)], (params.depth - 4) // 6)

    def forward(self, x: Images) -> Features:
        return super().forward(x)
