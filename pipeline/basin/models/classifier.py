"""A classifier is a composition: purifier -> normalise -> backbone -> head."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import log_softmax

from basin.randomness import Random, random_layers
from basin.types import Features, Images, Logits


class Normalise(nn.Module):
    """(x - mean) / std per channel, inside the model, so that every attack works on pixels in [0, 1]."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: list[float], std: list[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.lipschitz = 1 / min(std)

    def forward(self, x: Images) -> Images:
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """Images in [0, 1] -> logits.

    `purifier` maps images in [0, 1] to images in [0, 1] (the identity where there is none), and so comes before `normalise`;
    `backbone` has an attribute `width` and maps [n, c, h, w] to [n, width]; `head` maps [n, width] to [n, classes].
    `recipe` is the tree from which the classifier was built (basin/models/artifact.py).
    """

    def __init__(self, purifier: nn.Module, normalise: nn.Module, backbone: nn.Module, head: nn.Module, recipe: dict[str, Any]):
        super().__init__()
        self.purifier, self.normalise, self.backbone, self.head, self.recipe = purifier, normalise, backbone, head, recipe
        for name, layer in self.named_modules():
            if isinstance(layer, Random):
                layer.place = name

    def features(self, images: Images) -> Features:
        return self.backbone(self.normalise(self.purifier(images)))

    def single(self, images: Images) -> Logits:
        """One pass: one draw of whatever is random."""
        return self.head(self.features(images))

    def forward(self, images: Images) -> Logits:
        """One pass, or the logarithm of the mean probabilities of as many draws as the model asks for."""
        if self.draws == 1:
            return self.single(images)
        passes = torch.stack([log_softmax(self.single(images), 1) for _ in range(self.draws)])
        return passes.logsumexp(0) - math.log(self.draws)

    @property
    def randomised(self) -> bool:
        """Whether two passes over the same image may differ."""
        return bool(random_layers(self))

    @property
    def draws(self) -> int:
        """How many draws a pass averages, in training and in evaluation mode."""
        layers = random_layers(self)
        return max((layer.training_draws if self.training else layer.inference_draws for layer in layers), default=1)
