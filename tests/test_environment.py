"""What is decided before anything is computed: memory that is freed is kept for what is asked for next."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from basin import environment
environment.apply(sys.argv[1])
torch.set_num_threads(1)
net, x = torch.nn.Conv2d(1, 32, 3), torch.rand(64, 1, 28, 28)
def step():
    net(x).relu().square().mean().backward()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


def faults(folder, **own: str) -> int:
    """How many pages the system had to give, and to zero, in ten steps of training."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", FAULTS, str(folder)], env=env | own, capture_output=True, encoding="utf-8", timeout=100)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_what_is_freed_is_kept_unless_the_user_says_otherwise(tmp_path):
    kept, given_back = faults(tmp_path), faults(tmp_path, MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")
    assert kept < given_back / 4 and given_back > 5000, (kept, given_back)
