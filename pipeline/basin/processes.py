"""Several processes that compute one stage together, and all that they tell one another.

All of them run the same command and hold the same state. Each computes a share, and all get all shares, in the same order: so what is
decided by them is decided by each alike. What a machine could decide otherwise, the first process says; it alone writes.

How they come to be is the stage's business (basin/stages/joining.py).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from basin import files
from basin.errors import Absent, said, short_of_memory

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Lost(Absent):
    """Another process is gone. Trying again may help."""


@dataclass(frozen=True)
class Group:
    """`size` processes, of which this is number `rank`, from 0. All have to call the same methods in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def rows(self, n: int, rank: int | None = None) -> slice:
        """The rows of n that are a process's own, this one's where none is named; all, where there are not enough for each."""
        k = self.rank if rank is None else rank
        return slice(n * k // self.size, n * (k + 1) // self.size) if n >= self.size else slice(0, n)

    def over(self, items: Sequence[T], compute: Callable[[int, T], Sequence["Tensor"]]) -> Iterator[Sequence["Tensor"]]:
        """What `compute(position, item)` makes of each item, in their order; each item is one process's, and all get all tensors.

        Raises MemoryError in all where memory was short in one, and Lost where one is gone.
        """
        if self.size == 1:
            yield from (compute(position, item) for position, item in enumerate(items))
            return
        try:
            own = _packed([compute(i, item) for i, item in enumerate(items) if i % self.size == self.rank])
        except (MemoryError, RuntimeError) as error:
            if not short_of_memory(error):
                raise
            own = b""
        shares = self._exchanged(own)
        if not all(shares):
            raise MemoryError("in one of the processes")
        opened = [_opened(share) for share in shares]
        yield from (opened[i % self.size][i // self.size] for i in range(len(items)))

    def told(self, find: Callable[[], Any]) -> Any:
        """What the first process finds; JSON can say it."""
        if self.size == 1:
            return find()
        return json.loads(self._exchanged(json.dumps(find()).encode() if self.first else b"")[0])

    def copy(self, path: Path) -> None:
        """The file as the first process has it, or none where it has none: they may be on several machines."""
        if self.size > 1:
            content = self._exchanged(path.read_bytes() if self.first and path.exists() else b"")[0]
            if not self.first and content:
                files.write(path, content)
            elif not self.first:
                path.unlink(missing_ok=True)

    def share(self, tensors: Iterable["Tensor"]) -> None:
        """Give the tensors the values that they have in the first process."""
        if self.size > 1:
            import torch.distributed as dist

            with _meeting():
                for tensor in tensors:
                    dist.broadcast(tensor.detach(), 0)

    def average(self, tensors: Sequence["Tensor"]) -> None:
        """Give float tensors their means over the processes, in one message."""
        if self.size > 1 and tensors:
            import torch

            means = self.total(torch.cat([tensor.flatten() for tensor in tensors])) / self.size
            for tensor, mean in zip(tensors, means.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(mean.view(tensor.shape))

    def total(self, tensor: "Tensor") -> "Tensor":
        """The sum over the processes."""
        import torch.distributed as dist

        total = tensor.detach().clone()
        with _meeting():
            dist.all_reduce(total)
        return total

    def gathered(self, own: "Tensor", n: int) -> "Tensor":
        """[n, ...] from each process's own rows of it."""
        import torch
        import torch.distributed as dist

        lengths = [len(range(n)[self.rows(n, rank)]) for rank in range(self.size)]
        padded = own.new_zeros((max(lengths), *own.shape[1:]))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in lengths]
        with _meeting():
            dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def _exchanged(self, content: bytes) -> list[bytes]:
        """What each process gave, in their order."""
        import torch
        import torch.distributed as dist

        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        with _meeting():
            dist.all_gather(sizes, torch.tensor([len(content)]))
            padded = torch.zeros(max(int(size) for size in sizes), dtype=torch.uint8)
            if content:
                padded[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            parts = [torch.empty_like(padded) for _ in sizes]
            if len(padded):
                dist.all_gather(parts, padded)
        return [part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]


ALONE = Group()


def _packed(shares: Sequence[Sequence["Tensor"]]) -> bytes:
    from safetensors.torch import save

    return save({f"{i}.{j}": tensor.contiguous().clone() for i, share in enumerate(shares) for j, tensor in enumerate(share)})


def _opened(content: bytes) -> list[list["Tensor"]]:
    from safetensors.torch import load

    named = {tuple(map(int, name.split("."))): tensor for name, tensor in load(content).items()}
    return [[named[key] for key in keys] for _, keys in groupby(sorted(named), key=itemgetter(0))]


@contextmanager
def _meeting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise Lost(f"processes: another one of this stage is gone (got {said(error)}). Run it again; what is done is kept.") from error
