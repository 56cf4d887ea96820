"""The training images on the device that trains, and its batches, made there.

Images stay uint8 until a batch of them is gathered. Where the split takes more than half of an accelerator's free memory it stays on the
host, and a batch goes over through pinned memory, without the host waiting for it. Which of the two it is does not change a bit.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from basin.data.splits import Split, floats
from basin.types import Images, Labels, Pixels

Augment = Callable[[Images, torch.Generator], Images]
MOST = 0.5  # of the free memory, which the split may take; the rest is for the model and its passes


class Batches:
    """Batches of a split on a device; `augment` is what each goes through there."""

    def __init__(self, train: Split, device: torch.device, augment: Augment = lambda images, draws: images):
        self.device, self.augment = device, augment
        self.labels = train.labels.to(device)
        self.images = train.images.to(device) if fits(train.images, device) else train.images

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, order: Tensor, size: int) -> list[Tensor]:
        """The positions of each batch, where the images are. One copy an epoch. One image that is left over goes with the batch before it:
        of a single one a batch normalisation may have no variance."""
        order = order.to(self.images.device)
        if self.images.device != self.device:
            order = order.pin_memory()
        whole = len(order) - 1 if len(order) % size == 1 and len(order) > size > 1 else len(order)
        *batches, last = order[:whole].split(size)
        return [*batches, torch.cat([last, order[whole:]])]

    def at(self, rows: Tensor, draws: torch.Generator) -> tuple[Images, Labels]:
        """The images, augmented, and labels at `rows`, a part of what `split` gave."""
        pixels = self.images[rows] if self.images.device == self.device else self._over(rows)
        return self.augment(floats(pixels), draws), self.labels[rows.to(self.device, non_blocking=True)]

    def _over(self, rows: Tensor) -> Pixels:
        pinned = torch.empty((len(rows), *self.images.shape[1:]), dtype=self.images.dtype, pin_memory=True)
        return torch.index_select(self.images, 0, rows, out=pinned).to(self.device, non_blocking=True)


def fits(images: Pixels, device: torch.device) -> bool:
    """Whether a split may live on the device."""
    return device.type != "cuda" or images.nbytes <= MOST * torch.cuda.mem_get_info(device)[0]
