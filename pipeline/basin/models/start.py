"""Weights to start from that were trained elsewhere: a safetensors file, checked name by name against the classifier that gets them."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as unpacked
from torch import Tensor, nn

from basin.config.start import Weights
from basin.errors import Mistake, said
from basin.models.classifier import Classifier
from basin.models.recipe import digest

log = logging.getLogger(__name__)
PARTS = ("purifier.", "normalise.", "backbone.", "head.")


@dataclass(frozen=True)
class Start:
    """Tensors by name, where they are from, and the normalisation that they were trained with, where that is known."""

    where: str
    tensors: dict[str, Tensor]
    mean: list[float] | None = None
    std: list[float] | None = None


def read(weights: Weights) -> Start:
    """The tensors of a file. Raises Mistake where it is missing, damaged, or not the one that was asked for."""
    path = Path(weights.file)
    try:
        content = path.read_bytes()
        tensors = unpacked(content)
    except (OSError, SafetensorError) as error:
        raise Mistake(f"{path}: cannot be read (got {said(error)[:120]}). Name a safetensors file.") from None
    if (got := digest(content)) != weights.sha256:
        raise Mistake(f"{path}: not the file that params.yaml asks for (got SHA-256 {got}). Write that under weights.sha256 if it is.")
    mean, std = weights.mean, weights.std
    if mean is None and "normalise.mean" in tensors and "normalise.std" in tensors:
        mean, std = tensors["normalise.mean"].flatten().tolist(), tensors["normalise.std"].flatten().tolist()
    return Start(str(path), tensors, mean, std)


def put(start: Start, classifier: Classifier) -> None:
    """Give a classifier's backbone the tensors, and its head, where they hold one that fits. Raises Mistake with what does not fit."""
    tensors = {_place(name, classifier.backbone): tensor for name, tensor in start.tensors.items()}
    backbone, head = (_of(part, tensors) for part in ("backbone.", "head."))
    wanted, own_head = classifier.backbone.state_dict(), classifier.head.state_dict()
    problems = [
        *(f"lacks {name}" for name in wanted if name not in backbone and not name.endswith("num_batches_tracked")),
        *(f"has {name}, which the backbone has not" for name in backbone if name not in wanted),
        *(
            f"{name} is {tuple(backbone[name].shape)} for {tuple(own.shape)}"
            for name, own in wanted.items()
            if name in backbone and backbone[name].shape != own.shape
        ),
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise Mistake(f"{start.where}: does not fit the backbone (got: {'; '.join(problems[:3])}{more}). Give the backbone's own settings.")
    classifier.backbone.load_state_dict(wanted | backbone)
    if {name: tensor.shape for name, tensor in head.items()} == {name: tensor.shape for name, tensor in own_head.items()}:
        classifier.head.load_state_dict(head)
    else:
        log.info("%s: its classifier is not of these classes; a new one begins", start.where)
    _check_finite(start, classifier)


def _place(name: str, backbone: nn.Module) -> str:
    """A tensor's name in a classifier: as it is, or as the backbone says, or inside the backbone."""
    if name.startswith(PARTS):
        return name
    return backbone.named(name) if hasattr(backbone, "named") else f"backbone.{name}"  # type: ignore[operator]


def _of(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}


def _check_finite(start: Start, classifier: Classifier) -> None:
    if broken := [name for name, tensor in classifier.state_dict().items() if not torch.isfinite(tensor).all()]:
        raise Mistake(f"{start.where}: holds weights that are not finite (got some in {broken[0]}). Take others.")
