"""What a device computes quickly in: bfloat16 by autocast, and convolutions with the channels last."""

import torch
from torch import nn

INSTRUCTIONS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # Intel's tiles; dot products of AMD's from Zen 4 on, and of Intel's


def convolutional(model: nn.Module) -> bool:
    return any(isinstance(layer, nn.Conv2d) for layer in model.modules())


def has_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies matrices of bfloat16 by instructions of its own."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and any(getattr(torch.cpu, asked, bool)() for asked in INSTRUCTIONS)
