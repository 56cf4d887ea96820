"""ResNet-18 at 32x32 pixels: images a second of PGD-10, the share of what the device's matrix products reach, a verdict on 1,000 images.

Of `python -m benchmarks.speed --parts resnet`; by default on a GPU alone, for a core takes hours. The images are digits, enlarged.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode

from basin.config.kinds import choose
from basin.config.splits import SplitSettings
from basin.config.suite import ready
from basin.data.splits import Split, divide
from basin.evaluation.robustness import evaluate
from basin.methods.sources import digits
from basin.models.classifier import Classifier
from basin.models.precision import has_bfloat16
from basin.randomness import generator
from basin.threat.ball import ThreatModel
from benchmarks.training_pace import BATCH, METHODS, network, train

SHAPE, EPOCHS = (3, 32, 32), 10
THREAT = ThreatModel(norm="linf", eps=8 / 255)
TREE = METHODS["PGD-10"][0]
PRODUCT = 8192  # rows and columns of the matrices whose product is the ceiling


def measure(device: torch.device, toy: bool) -> Iterator[dict[str, Any]]:
    splits = divide(digits.read(digits.Params()), SplitSettings(test=0.6), 0)
    net = {"depth": 8, "width": 4} if toy else {"depth": 18}
    batches, n, size, epochs = (1, 20, 256, 1) if toy else (4, 1000, PRODUCT, EPOCHS)
    model, images = network(device, SHAPE, "resnet", **net), enlarged(splits["train"], batches * BATCH)
    ceiling = flops_a_second(size, device)
    work = _flops(model, images) * batches
    train(model, images, TREE, 1, THREAT)
    seconds = _seconds(lambda: train(model, images, TREE, epochs, THREAT), device) / epochs
    figures = {"seconds": seconds, "floor": work / ceiling, "ratio": seconds * ceiling / work, "rounds": 1}
    yield {"what": f"PGD-10, an epoch of {len(images)} images, a mean over {epochs}"} | figures
    test = enlarged(splits["test"], n)
    model.eval().requires_grad_(False)
    began = time.perf_counter()
    found = evaluate(model, None, test.floats(), test.labels, THREAT, ready("standard"), (0, "resnet"))
    seconds = time.perf_counter() - began
    says = f"robust {found.worst_case:.4f}, {found.outcomes.passes // n} passes an image"
    yield {"what": f"standard, n = {n}", "says": says, "seconds": seconds, "floor": seconds, "ratio": 1.0, "rounds": 1}


def enlarged(split: Split, n: int) -> Split:
    """The first n images in colour, four times as high and wide."""
    large = interpolate(split.images[:n].float(), SHAPE[1:]).to(torch.uint8)
    return Split(large.expand(-1, SHAPE[0], -1, -1).contiguous(), split.labels[:n])


def flops_a_second(size: int, device: torch.device) -> float:
    """What a product of two square matrices reaches, in bfloat16 where the device has it: the best of ten."""
    dtype = torch.bfloat16 if has_bfloat16(device) else torch.float32
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / min(_seconds(lambda: a @ a, device) for _ in range(10))


def _flops(model: Classifier, images: Split) -> int:
    """Of a step on one batch, attack and update."""
    method, device = choose("training", TREE), next(model.parameters()).device
    x, y = images.floats(slice(0, BATCH)).to(device), images.labels[:BATCH].to(device)
    with FlopCounterMode(display=False) as counter:
        method.module.loss(method.params, model.train(), x, y, THREAT, generator(0, "flops", device=device)).backward()
    return int(counter.get_total_flops())


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - began
