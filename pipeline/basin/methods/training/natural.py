"""Natural training: cross-entropy on the images as they are."""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from basin.config.settings import Settings
from basin.threat.ball import ThreatModel
from basin.types import Images, Labels, Network


class Params(Settings):
    smoothing: float = Field(0.0, ge=0, lt=1, description="the share of a label, below 1, that all classes get")


def loss(params: Params, network: Network, images: Images, labels: Labels, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    """L = mean CE(network(x), y)."""
    return cross_entropy(network(images), labels, label_smoothing=params.smoothing)
