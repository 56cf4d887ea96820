"""Each image is mirrored, left to right, with probability `share`. For what is the same seen from the other side: not for digits.

As in He et al. 2016 (arXiv 1512.03385, section 4.2), and long before.
"""

import torch
from pydantic import Field

from basin.config.settings import Settings
from basin.types import Images


class Params(Settings):
    share: float = Field(0.5, ge=0, le=1, description="the probability with which an image is mirrored, 0 to 1")


def augment(params: Params, images: Images, generator: torch.Generator) -> Images:
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) < params.share
    return torch.where(mirrored, images.flip(3), images)
