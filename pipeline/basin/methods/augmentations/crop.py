"""Each image is padded with zeros and cut back to its size at a place drawn evenly: it moves by up to `padding` pixels either way.

As on CIFAR in He et al. 2016 (arXiv 1512.03385, section 4.2): 4 pixels around 32x32.
"""

import torch
from pydantic import Field
from torch.nn.functional import pad

from basin.config.settings import Settings
from basin.types import Images


class Params(Settings):
    padding: int = Field(4, ge=1, description="a positive number of pixels of zeros on each side (the paper on CIFAR: 4)")


def augment(params: Params, images: Images, generator: torch.Generator) -> Images:
    n, c, h, w = images.shape
    device, p = images.device, params.padding
    top, left = torch.randint(2 * p + 1, (2, n, 1), generator=generator, device=device)
    rows, columns = top + torch.arange(h, device=device), left + torch.arange(w, device=device)
    i, j = torch.arange(n, device=device).view(n, 1, 1, 1), torch.arange(c, device=device).view(1, c, 1, 1)
    return pad(images, (p, p, p, p))[i, j, rows[:, None, :, None], columns[:, None, None, :]]
