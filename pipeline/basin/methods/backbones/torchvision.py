"""Any classifier of torchvision by its name, up to its last layer, in whose place comes Basin's own head.

Fresh weights, those of a file of one's own (`weights:` of the model's entry), or, where asked for, torchvision's pretrained ones, with the
normalisation that belongs to them. Grey images are given to all three channels.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from basin.config.settings import Settings
from basin.errors import Mistake, did_you_mean, said
from basin.models.borrowed import check, quieten
from basin.models.start import Start
from basin.types import Features, Images, ImageShape

AUXILIARY = ("googlenet", "inception_v3")  # which have further classifiers on the way


class Params(Settings):
    name: str = Field(description="the model's name in torchvision, such as resnet18 or convnext_tiny")
    pretrained: bool = Field(False, description="whether to start from torchvision's weights, downloaded where they are not yet there")


class Backbone(nn.Module):
    """[n, c, h, w], c = 1 or 3 -> [n, width]. Raises Mistake where torchvision has no such model, or does not take these images."""

    def __init__(self, params: Params, shape: ImageShape):
        super().__init__()
        with torch.device("cpu"):  # some do not stand being laid out without memory
            self.network = network(params.name)
            check(self.network, params.name, shape)
        self.last = last_layer(self.network)
        layer = self.network.get_submodule(self.last)
        self.width = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels  # squeezenet ends with a convolution
        self.network.set_submodule(self.last, nn.Identity())
        quieten(self.network)

    def forward(self, x: Images) -> Features:
        return self.network(x.expand(-1, 3, -1, -1))

    def named(self, name: str) -> str:
        """Where in a classifier a tensor belongs that is called `name` in torchvision."""
        layer, _, tensor = name.rpartition(".")
        return f"head.classifier.{tensor}" if layer == self.last else f"backbone.network.{name}"


def network(name: str) -> nn.Module:
    from torchvision import models  # type: ignore[import-untyped]

    known = models.list_models(module=models)
    if name not in known:
        raise Mistake(f"backbone.name: torchvision has no such classifier (got {name!r}). {did_you_mean(name, known)}")
    return models.get_model(name, weights=None, **({"aux_logits": False, "init_weights": True} if name in AUXILIARY else {}))


def last_layer(network: nn.Module) -> str:
    """The name of the last module that holds parameters of its own."""
    return [name for name, module in network.named_modules() if next(module.parameters(recurse=False), None) is not None][-1]


def check_cached(url: str) -> None:
    """What was downloaded before is read only where it has the digest in its name; torch compares that of a new download alone."""
    name = url.rpartition("/")[2]
    path, digest = Path(torch.hub.get_dir()) / "checkpoints" / name, name.rpartition("-")[2].partition(".")[0]
    if path.is_file() and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(digest):
        raise Mistake(f"{path}: not the file that torchvision published (got another digest than {digest}...). Remove it.")


def start(params: Params) -> Start | None:
    """torchvision's own weights and normalisation, where they are asked for."""
    if not params.pretrained:
        return None
    from torchvision import models

    if params.name in AUXILIARY:
        raise Mistake(f"backbone.pretrained: not of a model with further classifiers (got {params.name}). Choose another name.")
    network(params.name)  # raises where there is none
    weights = models.get_model_weights(params.name).DEFAULT
    preset: Any = weights.transforms()
    check_cached(weights.url)
    try:
        tensors = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError as error:
        raise Mistake(f"backbone.pretrained: cannot be fetched (got {said(error)[:120]}). Use `weights` with a file of your own.") from None
    return Start(f"torchvision's {params.name}", tensors, list(preset.mean), list(preset.std))
