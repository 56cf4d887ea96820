"""A classifier is a composition: normalise -> backbone -> head."""

from typing import Any

import torch
from torch import nn

from pipeline.types import Features, Images, Logits


class Normalise(nn.Module):
    """(x - mean) / std per channel, inside the model, so that every attack works on pixels in [0, 1]."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: list[float], std: list[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Images) -> Images:
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """Images in [0, 1] -> logits.

    `backbone` has an attribute `width` and maps [n, c, h, w] to [n, width]; `head` maps [n, width] to [n, classes].
    `recipe` is the tree from which the classifier was built (pipeline/artifact.py).
    """

    def __init__(self, normalise: nn.Module, backbone: nn.Module, head: nn.Module, recipe: dict[str, Any]):
        super().__init__()
        self.normalise, self.backbone, self.head, self.recipe = normalise, backbone, head, recipe

    def features(self, images: Images) -> Features:
        return self.backbone(self.normalise(images))

    def forward(self, images: Images) -> Logits:
        return self.head(self.features(images))
