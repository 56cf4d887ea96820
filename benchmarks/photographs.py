"""What an attack on a photograph classifier takes: the peak memory of a process, and the seconds of a pass, against batch and size.

    python -m benchmarks.photographs [--batches 1,8,32] [--sides 112,224] [--model resnet50]

A cell is a process of its own, which takes gradients of a batch as the attacks do: of torchvision's model with drawn weights, which take
the memory and time of trained ones. One thread; seconds are the processor's. The table of docs/evaluation.md; minutes on a core.
"""

import argparse
import json
import logging
import subprocess
import sys
import time

import torch

from basin.randomness import construct, generator
from basin.threat.target import gradient
from basin.tracking.system import taken
from benchmarks import as_command

log = logging.getLogger(__name__)
HEAD = "| images | side | peak memory, MiB | of it the model and torch | seconds an image |\n|---|---|---|---|---|"
PASSES = 2


def cell(model: str, batch: int, side: int) -> dict[str, float]:
    """Peak memory of this process in MiB, before and with gradients of a batch, and the seconds of one, forwards and back, an image."""
    from torchvision import models

    with construct(0, "photographs"):
        network = models.get_model(model).eval().requires_grad_(False)
    before, draw = taken()["system/peak_memory_megabytes"], generator(0, "photographs")
    images, labels = torch.rand(batch, 3, side, side, generator=draw), torch.zeros(batch, dtype=torch.int64)
    began = time.process_time()
    for _ in range(PASSES):
        gradient(network, images, labels)
    seconds = (time.process_time() - began) / PASSES / batch
    return {"before": before, "peak": taken()["system/peak_memory_megabytes"], "seconds": seconds}


def row(model: str, batch: int, side: int) -> str:
    words = [sys.executable, "-m", "benchmarks.photographs", "--model", model, "--cell", f"{batch},{side}"]
    found = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout)
    return f"| {batch} | {side} | {found['peak']:,.0f} | {found['before']:,.0f} | {found['seconds']:.2g} |"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("model", "resnet50"), ("batches", "1,8,32"), ("sides", "112,224"), ("cell", "")):
        asked.add_argument(f"--{name}", default=default)
    words = asked.parse_args()
    if words.cell:
        sys.stdout.write(json.dumps(cell(words.model, *map(int, words.cell.split(",")))))
        return
    log.info(HEAD)
    for side in map(int, words.sides.split(",")):
        for batch in map(int, words.batches.split(",")):
            log.info(row(words.model, batch, side))


if __name__ == "__main__":
    as_command(main)
