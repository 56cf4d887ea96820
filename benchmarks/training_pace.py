"""Training beside a tight PyTorch loop in the best settings of the device: `python -m benchmarks.training_pace`. Prints a table.

A small convolutional net on 28x28 pixels, batches of 128 random images, Adam; one core, or a GPU where there is one. Both sides do the
same arithmetic, in channels last with a fused optimiser, in bfloat16 where the device has it; ours also watches for what is not finite,
and writes its checkpoint."""

import logging
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from basin.config.kinds import choose
from basin.config.schedule import Schedule
from basin.data.splits import Split
from basin.models import artifact
from basin.models.classifier import Classifier
from basin.models.precision import has_bfloat16
from basin.randomness import construct, generator
from basin.threat.ball import ThreatModel
from basin.training import optimise
from basin.training.phase import Phase
from benchmarks import as_command, line, side_by_side

log = logging.getLogger(__name__)
SHAPE, BATCH, RATE, ROUNDS = (1, 28, 28), 128, 1e-3, 7
THREAT = ThreatModel(norm="linf", eps=0.1)
METHODS: dict[str, tuple[dict[str, Any], int, float, int]] = {  # the method, its attack's steps and their length, and batches measured
    "natural": ({"kind": "natural"}, 0, 0.0, 40),
    "fast": ({"kind": "fast"}, 1, 1.25, 10),
    "PGD-10": ({"kind": "pgd", "steps": 10, "step": 0.25}, 10, 0.25, 3),
}


def measure(rounds: int = ROUNDS, device: torch.device | None = None) -> list[dict[str, Any]]:
    """One row a method: what `side_by_side` says of the tight loop over ours, so that less than 1 is slower than it."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return [_row(f"{name}, {_precision(device)}", device, *method, rounds) for name, method in METHODS.items()]


def _row(what: str, device: torch.device, tree: dict[str, Any], steps: int, step: float, batches: int, rounds: int) -> dict[str, Any]:
    images = random_images(batches * BATCH if device.type == "cpu" else 100 * batches * BATCH)
    tight, ours = partial(loop, network(device), images, steps, step), partial(train, network(device), images, tree)
    return {"what": what} | side_by_side(tight, ours, rounds)


def random_images(n: int) -> Split:
    draws = generator(0, "images")
    pixels = torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=draws)
    return Split(pixels, torch.randint(0, 10, (n,), generator=draws))


def network(device: torch.device, shape: tuple[int, int, int] = SHAPE, kind: str = "convnet", **settings: int) -> Classifier:
    normalise = {"mean": [0.3] * shape[0], "std": [0.4] * shape[0]}
    tree = {"normalise": normalise, "backbone": {"kind": kind} | settings, "head": {"kind": "linear"}}
    with construct(0, "network"):
        return artifact.build({"model": "backbone/pace", "shape": shape, "classes": list("0123456789"), "classifier": tree}).to(device)


def _precision(device: torch.device) -> Any:
    return "bf16" if has_bfloat16(device) else "float32"


def train(model: Classifier, images: Split, tree: dict[str, Any], epochs: int = 1, threat: ThreatModel = THREAT) -> None:
    """So many epochs of ours."""
    method, device = choose("training", tree), next(model.parameters()).device
    schedule = Schedule(epochs=epochs, batch=BATCH, rate=RATE, precision=_precision(device))

    def loss(x: Tensor, y: Tensor, g: torch.Generator) -> Any:
        return method.module.loss(method.params, model, x, y, threat, g)

    with tempfile.TemporaryDirectory() as folder:
        phase = Phase("pace", schedule, [model.backbone, model.head], loss)
        optimise.run(model, [phase], images, lambda: 0.0, (0, "pace"), Path(folder) / "checkpoint.safetensors")


def loop(model: Classifier, images: Split, steps: int, step: float) -> None:
    """An epoch of the tight loop."""
    device = next(model.parameters()).device
    model = model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    narrow, eps = torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)), THREAT.eps
    for x, y in _batches(images, device):
        z = x
        if steps:
            z = torch.empty_like(x).uniform_(-eps, eps).add_(x).clamp_(0, 1)
        for _ in range(steps):
            z.requires_grad_()
            with narrow:
                z_loss = cross_entropy(model(z), y)
            (g,) = torch.autograd.grad(z_loss, z)
            z = torch.add(z.detach(), g.sign_(), alpha=step * eps)
            z = torch.minimum(torch.maximum(z, x - eps), x + eps).clamp_(0, 1)
        with narrow:
            loss = cross_entropy(model(z), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _batches(images: Split, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    pixels, labels = images.images.to(device), images.labels.to(device)
    for rows in torch.randperm(len(labels), generator=generator(0, "order")).to(device).split(BATCH):
        yield pixels[rows].float().div_(255).contiguous(memory_format=torch.channels_last), labels[rows]


def main() -> None:
    for row in measure():
        log.info("%s", line(row))


if __name__ == "__main__":
    as_command(main)
