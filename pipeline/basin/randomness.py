"""A generator for every purpose, so that adding one draw moves no other.

Nothing in Basin draws from torch's global generator. Layers whose constructors do (torch.nn has no other way) are built
under `construct`, which seeds the global generator and puts it back.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


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


@contextmanager
def others_seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python, from which code of others draws; put them back, whatever happens."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


class Random(nn.Module):
    """A layer whose output is drawn: it takes every draw from `generator`, and `drawing` says which one that is.

    Where nobody says, it is one of the layer's own, of a fixed seed: a model that has just been loaded is a function of its calls.
    The draws are how many passes a classifier averages, in training and as the reported function (basin/models/classifier.py).
    """

    training_draws: int = 1
    inference_draws: int = 1
    generator: torch.Generator | None = None
    part: tuple[slice, int] | None = None  # which rows of a batch of how many are passed, where others pass the rest
    place: str = ""  # in its classifier, which sets it: two layers of one shape do not share their noise

    def normal(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Standard normal draws, with the type and on the device of `like`."""
        return torch.randn(shape, generator=self._generator(like.device), dtype=like.dtype, device=like.device)

    def normal_rows(self, like: Tensor) -> Tensor:
        """Standard normal draws of the shape of `like`, which has a row an image; of a part of a batch, those of the whole batch."""
        rows, n = self.part or (slice(None), len(like))
        return self.normal((n, *like.shape[1:]), like)[rows]

    def uniform(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Uniform draws from [0, 1), with the type and on the device of `like`."""
        return torch.rand(shape, generator=self._generator(like.device), dtype=like.dtype, device=like.device)

    def _generator(self, device: torch.device) -> torch.Generator:
        if self.generator is None or self.generator.device != device:
            self.generator = generator(0, "draws", self.place, device=device)
        return self.generator


def random_layers(module: nn.Module) -> list[Random]:
    """Every layer inside a module whose output is drawn."""
    return [layer for layer in module.modules() if isinstance(layer, Random)]


@contextmanager
def drawing(module: nn.Module, draws: torch.Generator) -> Iterator[None]:
    """Have every random layer inside a module draw from `draws`, and give each its own generator back."""
    with given([(layer, draws) for layer in random_layers(module)]):
        yield


Drawn = list[tuple[Random, torch.Generator | None]]  # what each layer draws from


def copied(layers: Drawn) -> Drawn:
    """Their generators as they stand now: what is drawn of the copies moves no original. Layers that share one share its copy."""
    copies = {id(own): own.clone_state() for _, own in layers if own is not None}
    return [(layer, copies.get(id(own))) for layer, own in layers]


@contextmanager
def given(layers: Drawn) -> Iterator[None]:
    """Have each layer draw from the generator beside it, and give it its own back."""
    own = [(layer, layer.generator) for layer, _ in layers]
    for layer, draws in layers:
        layer.generator = draws
    try:
        yield
    finally:
        for layer, theirs in own:
            layer.generator = theirs
