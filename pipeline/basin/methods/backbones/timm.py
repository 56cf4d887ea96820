"""Any classifier of timm by its name, with Basin's own head in place of its last layer. timm comes with `pip install basin[timm]`.

Fresh weights, those of a file of one's own (`weights:` of the model's entry), or, where asked for, the published ones with their
normalisation: safetensors alone, never a pickle. Grey images are given to all three channels.
"""

from typing import Any

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import nn

from basin.config.settings import Settings
from basin.errors import Mistake, did_you_mean, said
from basin.models.borrowed import check, quieten
from basin.models.start import Start
from basin.types import Features, Images, ImageShape


class Params(Settings):
    name: str = Field(description="the model's name in timm, such as convnextv2_nano or resnet18.a1_in1k")
    pretrained: bool = Field(False, description="whether to start from the published weights, downloaded where they are not yet there")


class Backbone(nn.Module):
    """[n, c, h, w], c = 1 or 3 -> [n, width]. Raises Mistake where timm has no such model, or does not take these images."""

    def __init__(self, params: Params, shape: ImageShape):
        super().__init__()
        with torch.device("cpu"):  # some do not stand being laid out without memory
            self.network = network(params.name)
            self.width = check(self.network, params.name, shape).shape[1]
        quieten(self.network)

    def forward(self, x: Images) -> Features:
        return self.network(x.expand(-1, 3, -1, -1))

    def named(self, name: str) -> str:
        """Where in a classifier a tensor belongs that is called `name` in timm."""
        layer, _, tensor = name.rpartition(".")
        return f"head.classifier.{tensor}" if layer == self.network.pretrained_cfg["classifier"] else f"backbone.network.{name}"


def network(name: str) -> Any:
    """Up to its last layer, with fresh weights."""
    timm = library()
    try:
        return timm.create_model(name, num_classes=0)
    except RuntimeError:
        raise Mistake(f"backbone.name: timm has no such classifier (got {name!r}). {did_you_mean(name, timm.list_models())}") from None


def library() -> Any:
    try:
        import timm  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise Mistake("backbone.kind: timm is not installed (got kind timm). Run: pip install 'basin[timm]'.") from None
    return timm


def start(params: Params) -> Start | None:
    """The published weights and their normalisation, where they are asked for."""
    if not params.pretrained:
        return None
    about = network(params.name).pretrained_cfg
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    if not about.get("hf_hub_id"):
        raise Mistake(f"backbone.pretrained: nothing is published for this model (got {params.name}). Choose another name.")
    try:
        file = hf_hub_download(about["hf_hub_id"], "model.safetensors")
    except (OSError, HfHubHTTPError) as error:
        raise Mistake(f"backbone.pretrained: cannot be fetched (got {said(error)[:120]}). Use `weights` with a file of your own.") from None
    return Start(f"timm's {params.name}", load_file(file), list(about["mean"]), list(about["std"]))
