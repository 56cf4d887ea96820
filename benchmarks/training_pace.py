"""Training beside a tight PyTorch loop in the best settings of the device: `python -m benchmarks.training_pace`. Prints a table.

A small convolutional net on 28x28 pixels, batches of 128 random images, Adam; one core, or a GPU where there is one. Both sides do the
same arithmetic, in channels last with a fused optimiser, in bfloat16 where the device has it; ours also watches for what is not finite,
and writes its checkpoint. The two alternate, and a round's ratio is of neighbours in time. On a CPU the time is that of the process, so
that other work on the machine counts less.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
from benchmarks import as_command

SHAPE, BATCH, RATE, ROUNDS = (1, 28, 28), 128, 1e-3, 7
THREAT = ThreatModel(norm="linf", eps=0.1)
METHODS: dict[str, tuple[dict[str, Any], int, float, int]] = {  # the method, its attack's steps and their length, and batches measured
    "natural": ({"kind": "natural"}, 0, 0.0, 40),
    "fast": ({"kind": "fast"}, 1, 1.25, 10),
    "PGD-10": ({"kind": "pgd", "steps": 10, "step": 0.25}, 10, 0.25, 3),
}


def measure(rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """One row a method: seconds a batch, medians; `ratio` tight / ours, the median over rounds, and its `spread`, largest less smallest."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return [_row(f"training: {name}, {_precision(device)}", device, *method, rounds) for name, method in METHODS.items()]


def _row(what: str, device: torch.device, tree: dict[str, Any], steps: int, step: float, batches: int, rounds: int) -> dict[str, Any]:
    images = random_images(batches * BATCH if device.type == "cpu" else 100 * batches * BATCH)
    pairs = []
    for _ in range(rounds + 1):  # the first warms both up
        ours = timed(device, lambda: train(network(device), images, tree))
        pairs.append((ours, timed(device, lambda: loop(network(device), images, steps, step))))
    ratios = [tight / ours for ours, tight in pairs[1:]]
    ours_s, tight_s = (statistics.median(side) / (len(images) / BATCH) for side in zip(*pairs[1:]))
    spread = max(ratios) - min(ratios)
    return {"what": what, "ours_s": ours_s, "tight_s": tight_s, "ratio": statistics.median(ratios), "spread": spread}


def timed(device: torch.device, run: Callable[[], None]) -> float:
    """Seconds: of the process on a CPU, of the clock on a GPU, which is waited for."""
    if device.type == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def random_images(n: int) -> Split:
    draws = generator(0, "images")
    pixels = torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=draws)
    return Split(pixels, torch.randint(0, 10, (n,), generator=draws))


def network(device: torch.device) -> Classifier:
    tree = {"normalise": {"mean": [0.3], "std": [0.4]}, "backbone": {"kind": "convnet"}, "head": {"kind": "linear"}}
    with construct(0, "network"):
        return artifact.build({"model": "backbone/pace", "shape": SHAPE, "classes": list("0123456789"), "classifier": tree}).to(device)


def _precision(device: torch.device) -> Any:
    return "bf16" if has_bfloat16(device) else "float32"


def train(model: Classifier, images: Split, tree: dict[str, Any]) -> None:
    """An epoch of ours."""
    method, device = choose("training", tree), next(model.parameters()).device
    schedule = Schedule(epochs=1, batch=BATCH, rate=RATE, precision=_precision(device))

    def loss(x: Tensor, y: Tensor, g: torch.Generator) -> Any:
        return method.module.loss(method.params, model, x, y, THREAT, g)

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
    sys.stdout.write(f"{'':36}   ours ms  tight ms  tight / ours  spread\n")
    for row in measure():
        ours, tight = 1e3 * row["ours_s"], 1e3 * row["tight_s"]
        sys.stdout.write(f"{row['what']:36}{ours:10.1f}{tight:10.1f}{row['ratio']:14.3f}{row['spread']:8.3f}\n")


if __name__ == "__main__":
    as_command(main)
