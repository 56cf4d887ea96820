"""What a device computes quickly in: bfloat16 by autocast, and convolutions with the channels last."""

import torch
from torch import nn


def convolutional(model: nn.Module) -> bool:
    return any(isinstance(layer, nn.Conv2d) for layer in model.modules())


def has_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies matrices of bfloat16 by instructions of its own."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and _amx()


def _amx() -> bool:
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(asked and asked())
