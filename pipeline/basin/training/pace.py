"""How a backbone's passes are computed while a phase trains: channels last, in bfloat16, compiled.

The backbone is what costs. Purifier, head, loss, regularisers and the weights that are stepped stay in float32, and so does whatever is
measured: outside the steps of an epoch the model is itself.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from basin.config.schedule import Schedule
from basin.errors import Mistake, said
from basin.models.classifier import Classifier
from basin.models.lipschitz import given
from basin.models.ode import flows
from basin.models.precision import convolutional, has_bfloat16
from basin.processes import ALONE, Group
from basin.training.parallel import shared
from basin.types import Features, Images

log = logging.getLogger(__name__)


class Paced(nn.Module):
    """A backbone computed as a schedule asks; float32 in and out.

    `where` names the phase in an error; `group`: the processes that share its batches (basin/training/parallel.py). Raises Mistake where
    its precision is not for this backbone, or the backbone not for several processes.
    """

    def __init__(self, backbone: nn.Module, schedule: Schedule, device: torch.device, where: str, group: Group = ALONE):
        super().__init__()
        self.backbone, self.width, self.where, self.group = backbone, backbone.width, where, group
        self.layout, self.lipschitz = layout(backbone), given(backbone)
        self.narrow = schedule.precision == "bf16"
        if group.size > 1:
            check_shared(backbone, schedule, where)
        self.compiled = torch.compile(lambda images: backbone(images)) if schedule.compile else None
        if self.narrow:
            check(backbone, device, where)

    def forward(self, images: Images) -> Features:
        return shared(self.narrowed, self.backbone, images, self.group)

    def narrowed(self, images: Images) -> Features:
        images = images.contiguous(memory_format=self.layout)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.narrow):
            return self.passed(images).float()

    def passed(self, images: Images) -> Features:
        if self.compiled is None:
            return self.backbone(images)
        try:
            return self.compiled(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise Mistake(f"{self.where}: schedule.compile: fails here (got {said(error)}). Set it to false.") from error

    @contextmanager
    def in_place(self, model: Classifier) -> Iterator[None]:
        """In the place of the model's own backbone, whose weights lie in memory meanwhile as its passes want them."""
        model.backbone = self
        self.backbone.to(memory_format=self.layout)  # type: ignore[call-overload]
        try:
            yield
        finally:
            model.backbone = self.backbone.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def check(backbone: nn.Module, device: torch.device, where: str) -> None:
    """Raise Mistake where bfloat16 is of no use to a backbone, and say where it is slow."""
    if flows(backbone):
        raise Mistake(
            f"{where}: schedule.precision: this backbone solves an ODE, which bfloat16 makes slower and less exact (got bf16). "
            "Set it to float32."
        )
    if not has_bfloat16(device):
        log.warning("%s: precision: bf16 is slower here than float32: this processor has no instructions for it", where)
    elif device.type == "cpu" and grouped(backbone):
        log.warning("%s: precision: bf16 is slower here than float32: this backbone normalises in groups", where)


def check_shared(backbone: nn.Module, schedule: Schedule, where: str) -> None:
    """Raise Mistake where several processes cannot share a backbone's batches."""
    if schedule.compile:
        raise Mistake(f"{where}: schedule.compile: is for one process (got true). Set it to false.")
    if any(flow.solver.gradient == "adjoint" for flow in flows(backbone)):  # which may overflow for one's rows alone
        raise Mistake(f"{where}: solver.gradient: this backbone's is for one process (got adjoint). Set it to exact.")


def layout(module: nn.Module) -> torch.memory_format:
    """Channels last where that is quicker: of convolutions, unless group normalisation comes between them."""
    return torch.channels_last if convolutional(module) and not grouped(module) else torch.contiguous_format


def grouped(module: nn.Module) -> bool:
    return any(isinstance(layer, nn.GroupNorm) for layer in module.modules())
