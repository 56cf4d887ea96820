"""A generator for every purpose, so that adding one draw moves no other.

Nothing in Basin draws from torch's global generator. Layers whose constructors do (torch.nn has no other way) are built
under `construct`, which seeds the global generator and puts it back.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_for(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed from the run's seed and the purpose's names; stable across processes and machines."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for one purpose, e.g. `generator(0, "head/sodef", "batches")`."""
    return torch.Generator(device=device).manual_seed(seed_for(seed, *purpose))


@contextmanager
def construct(seed: int, *purpose: str | int) -> Iterator[None]:
    """Build layers from a seed of their own; the global generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed_for(seed, *purpose))
        yield
