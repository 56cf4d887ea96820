"""What a net of another library has to do before it is a backbone: take these images, draw nothing of its own, be the same twice."""

import torch
from torch import Tensor, nn

from basin.errors import Mistake, said
from basin.models.pooling import Means
from basin.types import ImageShape


@torch.no_grad()
def check(network: nn.Module, name: str, shape: ImageShape) -> Tensor:
    """What the net gives for one image. Raises Mistake with what it says where it takes none of this shape."""
    if shape[0] not in (1, 3):
        raise Mistake(f"backbone.name: {name} takes grey or colour images (got shape {shape}). Choose another kind of backbone.")
    try:
        given = network.eval()(torch.zeros(1, 3, *shape[1:]))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise Mistake(
            f"backbone.name: {name} does not take these images (got shape {shape}: {said(error)[:120]}). Choose another name."
        ) from None
    network.train()
    return given


def quieten(network: nn.Module) -> None:
    """Dropout and stochastic depth are off: they draw from torch's global generator, and an interrupted run would end as another one. A
    pool of several parts is as it was, but deterministic on a GPU too."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0  # type: ignore[assignment]
        elif type(module).__name__ == "DropPath":
            module.drop_prob = 0.0  # type: ignore[assignment]
        elif isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1)):
            network.set_submodule(name, Means(module.output_size))  # type: ignore[arg-type]
