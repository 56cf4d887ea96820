"""Means over the parts of an image, as a product with two fixed matrices.

torch's adaptive pooling says the same, but on a GPU its backward pass differs from run to run, and is refused where kernels are to be
deterministic.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def means(x: Tensor, side: Sequence[int]) -> Tensor:
    """[n, c, h, w] -> [n, c, *side]: the mean of each part, as torch.nn.functional.adaptive_avg_pool2d has them."""
    if x.shape[2:] == torch.Size(side):
        return x
    rows, columns = (_shares(size, parts, x) for size, parts in zip(x.shape[2:], side, strict=True))
    return rows @ x @ columns.T


def _shares(size: int, parts: int, like: Tensor) -> Tensor:
    """[parts, size]: row i is 1 / its length on the pixels floor(i size / parts) .. ceil((i + 1) size / parts), 0 elsewhere."""
    pixel, i = torch.arange(size, device=like.device), torch.arange(parts, device=like.device)[:, None]
    inside = (pixel >= i * size // parts) & (pixel < -(-(i + 1) * size // parts))
    return (inside / inside.sum(1, keepdim=True)).to(like.dtype)


class Means(nn.Module):
    """In the place of torch.nn.AdaptiveAvgPool2d."""

    def __init__(self, side: int | Sequence[int]):
        super().__init__()
        self.side = (side, side) if isinstance(side, int) else side

    def forward(self, x: Tensor) -> Tensor:
        return means(x, self.side)
