"""Memory that is short, by a limit of the operating system: the evaluation goes on with smaller batches, and says so."""

import json
import subprocess
import sys

import pytest
import torch

from basin.errors import short_of_memory

pytest.importorskip("resource", reason="limits of a process are POSIX's")


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_torch_and_its_libraries_say_when_memory_is_short(error: Exception, short: bool):
    assert short_of_memory(error) == short


GREEDY = """
import logging, resource, sys
from pathlib import Path
import torch
import basin

logging.basicConfig(format="%(message)s")
torch.manual_seed(0)
torch.set_num_threads(1)
images, labels, room, batch = torch.rand(64, 1, 4, 4), torch.arange(64) % 3, int(sys.argv[1]) << 20, int(sys.argv[2])


class Greedy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(16, 3)

    def forward(self, x):
        return self.linear(x.flatten(1)) + 0 * x.new_empty(len(x), room // 4)[:, :3].zero_()


def judged(batch):
    suite = basin.Suite.model_validate({"attacks": {"pgd": {"kind": "pgd", "steps": 5, "random_start": False}}})
    return basin.evaluate(Greedy().eval(), images, labels, basin.Threat(norm="linf", eps=0.1), suite, batch=batch)


used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (900 << 20),) * 2)
from basin.errors import exit_on_mistake
with exit_on_mistake():
    print(judged(batch).worst_case)
"""


def judged(room: int, batch: int) -> subprocess.CompletedProcess:
    """A model that takes `room` MiB an image, in 900 MiB."""
    return subprocess.run([sys.executable, "-c", GREEDY, str(room), str(batch)], capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_batch_that_memory_does_not_hold_is_halved_and_that_is_said():
    small, large = judged(1, 64), judged(20, 64)
    assert "goes on with batches of 32" in large.stderr, large.stderr
    assert "memory" not in small.stderr and small.stdout == large.stdout and 0 <= json.loads(small.stdout) < 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_where_not_one_image_fits_it_is_a_sentence():
    done = judged(1200, 4)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: memory: there is not enough (got RuntimeError: ") and done.stderr.endswith("another machine.\n")
