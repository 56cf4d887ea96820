"""What rounding explains: whether two passes over the same images gave the same logits."""

import torch
from torch import nn

from basin.types import Logits

SAME = 1e-3  # the largest difference of two passes' logits that rounding explains, as a share of the usual distance to the top logit
ROUNDING = 1e-5  # and as a share of the logit itself, in float32
COARSE = 8  # in a coarser type, so many of its last digits
MOST = 1e9  # of what rounding explains


def differs(model: nn.Module, one: Logits, other: Logits) -> bool:
    """Whether two passes' logits are further apart than rounding explains."""
    return difference(model, one, other) > 1


def difference(model: nn.Module, one: Logits, other: Logits) -> float:
    """The largest difference of two passes' logits over the largest that rounding explains in the type that the model computes in."""
    below = one.amax(1, keepdim=True) - one
    usual = below[below > 0].median().nan_to_num()  # of no logits at all below the top one, the median is not a number
    rounding = max(ROUNDING, COARSE * getattr(model, "eps", 0.0))
    same = (one == other) | (one.isnan() & other.isnan())
    times = ((one - other).abs() / (SAME * usual + rounding * one.abs())).nan_to_num(MOST).clamp_max(MOST)
    return torch.where(same, 0.0, times).max().item()
