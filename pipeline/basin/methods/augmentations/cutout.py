"""A square of each image is blanked: its centre is any pixel, drawn evenly, so that part of it may lie outside.

DeVries & Taylor 2017 (arXiv 1708.04552), who set it to 0 after normalisation, the mean of the data. Here it is before, and `mean` is that
of the image itself, channel by channel.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from basin.config.settings import Settings
from basin.types import Images


class Params(Settings):
    side: int = Field(16, ge=1, description="the positive side of the square in pixels (the paper: 16 on CIFAR-10, 8 on CIFAR-100)")
    fill: Literal["mean", "zero"] = Field("mean", description="mean (of the image, in each channel) or zero")


def augment(params: Params, images: Images, generator: torch.Generator) -> Images:
    n, _, h, w = images.shape
    rows, columns = (inside(params.side, n, size, generator) for size in (h, w))
    square = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(square, images.mean((2, 3), keepdim=True) if params.fill == "mean" else 0.0, images)


def inside(side: int, n: int, size: int, generator: torch.Generator) -> Tensor:
    """[n, size]: which pixels of one axis the square of each image covers."""
    first = torch.randint(size, (n, 1), generator=generator, device=generator.device) - side // 2
    pixels = torch.arange(size, device=generator.device)
    return (pixels >= first) & (pixels < first + side)
