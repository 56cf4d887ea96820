"""CIFAR in the form that most people have, that for Python: pickles, whose opcodes are read and which nothing executes."""

import numpy as np
import torch

from basin.config.place import Place
from basin.data.published import Checksums, Published, array, listed, opcodes
from basin.data.splits import Source, Split
from basin.errors import Mistake

SHAPE = (3, 32, 32)
Found = tuple[str, bytes]  # where, content


def checksums(name: str) -> Checksums:
    from torchvision import datasets

    data = getattr(datasets, name)
    return dict([*data.train_list, *data.test_list, (data.meta["filename"], data.meta["md5"])])


def read(place: Place, data: Published, labels: str, names: str) -> Source:
    """Both splits of a data set whose last two files are the test batch and the one that holds the classes; `labels` and `names` are their
    keys. Raises Mistake where a file is absent, damaged, or not what was published."""
    *train, test, meta = data.read(place, lambda: checksums(data.name)).values()
    classes = tuple(listed(meta[0], opcodes(*meta), names))
    batches = [_batch(*batch, labels, len(classes)) for batch in train]
    whole = Split(torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches]))
    return Source(whole, _batch(*test, labels, len(classes)), classes)


def _batch(where: str, content: bytes, key: str, classes: int) -> Split:
    operations = opcodes(where, content)
    labels = np.array(listed(where, operations, key), np.int64)
    pixels = np.frombuffer(bytearray(array(operations)), np.uint8)
    if pixels.size != len(labels) * int(np.prod(SHAPE)) or not 0 <= labels.min(initial=0) <= labels.max(initial=0) < classes:
        raise Mistake(f"{where}: not the published file (got {pixels.size} bytes of pixels, {len(labels)} labels). Fetch it again.")
    return Split(torch.from_numpy(pixels.reshape(-1, *SHAPE)), torch.from_numpy(labels))
