"""The quicker function in which a gradient is followed: bfloat16 by autocast, channels last. It searches; it never judges.

It is used where its gradient points where the model's own does (`AGREES`) and the processor has instructions for it; both are properties of
the model and the machine, not of a clock, so that the same run gives the same bytes.
"""

import copy

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from basin.errors import THEIRS
from basin.evaluation.subject import device_of
from basin.models.precision import convolutional, has_bfloat16
from basin.threat.target import gradient, margin
from basin.types import Images, Labels, Logits

AGREES = 0.95  # cosine between its gradient and the model's, of nine images in ten
SHARE = 0.1  # of the images, which may be further off


class Search(nn.Module):
    """A copy of a model, laid out with the channels last, that computes what autocast lets it in bfloat16; its logits are float32."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.training = False

    def forward(self, images: Images) -> Logits:
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.model(images.contiguous(memory_format=torch.channels_last)).float()


def search(model: nn.Module, images: Images, labels: Labels) -> nn.Module | None:
    """The quicker function of a model, where it is quicker and agrees on these few images; None otherwise."""
    coarse = getattr(model, "eps", 0.0) >= torch.finfo(torch.bfloat16).eps  # then it is no quicker
    if coarse or not convolutional(model) or not has_bfloat16(device_of(model)):
        return None
    try:
        quick = Search(model)
        return quick if agreement(model, quick, images, labels) >= AGREES else None
    except THEIRS:  # a model from outside that cannot be copied, or whose layers know no bfloat16
        return None


def agreement(model: nn.Module, other: nn.Module, images: Images, labels: Labels) -> float:
    """The cosine between the gradients of the margin that all but SHARE of the images reach."""
    own, theirs = (gradient(network, images, labels, margin)[0].flatten(1) for network in (model, other))
    return float(cosine_similarity(own, theirs).quantile(SHARE))
