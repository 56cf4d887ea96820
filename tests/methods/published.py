"""Small files in the formats in which data sets were published."""

import gzip
import struct
import tarfile
from pathlib import Path

import numpy as np
from scipy.io import savemat

from basin.data.idx import FILES

Arrays = dict[str, np.ndarray]


def write_idx(root: Path, gzipped: bool = True, n: int = 40, **replaced: bytes) -> Arrays:
    """MNIST's four files: n training images of 5x4, and half as many test images."""
    draw, arrays = np.random.default_rng(0), {}
    root.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        m = n if name.startswith("train") else n // 2
        arrays[name] = draw.integers(0, 256, (m, 5, 4), np.uint8) if "images" in name else (np.arange(m) % 10).astype(np.uint8)
        content = struct.pack(f">{arrays[name].ndim + 1}I", 0x0800 + arrays[name].ndim, *arrays[name].shape) + arrays[name].tobytes()
        content = replaced.get(name.split("-ubyte")[0].replace("-", "_"), content)
        (root / (f"{name}.gz" if gzipped else name)).write_bytes(gzip.compress(content, mtime=0) if gzipped else content)
    return arrays


def write_cifar(root: Path, classes: int, n: int = 30, labels: list[int] | None = None) -> Arrays:
    """CIFAR's batches, opcode by opcode as Python 2 wrote them: n images in each."""
    coarse = {} if classes == 10 else {"coarse_labels": [0] * n}
    key, names = ("labels", "label_names") if classes == 10 else ("fine_labels", "fine_label_names")
    batches = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"] if classes == 10 else ["train", "test"]
    draw, arrays = np.random.default_rng(0), {}
    root.mkdir(parents=True, exist_ok=True)
    for name in batches:
        arrays[name] = draw.integers(0, 256, (n, 3072), np.uint8)
        one = {"batch_label": name, key: labels or [k % classes for k in range(n)], "data": arrays[name], "filenames": ["a.png"] * n}
        (root / name).write_bytes(python2(one | coarse))
    meta = {"num_cases_per_batch": n, names: [f"class {k}" for k in range(classes)], "num_vis": 3072}
    (root / ("batches.meta" if classes == 10 else "meta")).write_bytes(python2(meta))
    return arrays


def python2(table: dict[str, object]) -> bytes:
    """A dictionary as Python 2 pickles it, in protocol 2."""
    return b"\x80\x02}q\x01(" + b"".join(_short(key) + _pickled(value) for key, value in table.items()) + b"u."


def _pickled(value: object) -> bytes:
    if isinstance(value, str):
        return _short(value)
    if isinstance(value, int):
        return b"M" + struct.pack("<H", value)
    if isinstance(value, list):
        parts = [value[start : start + 1000] for start in range(0, len(value), 1000)]
        one = (lambda number: b"K" + bytes([number])) if isinstance(value[0], int) else _short
        return b"]q\x02" + b"".join(b"(" + b"".join(map(one, part)) + b"e" for part in parts)
    assert isinstance(value, np.ndarray)
    empty = b"cnumpy.core.multiarray\n_reconstruct\nq\x03(cnumpy\nndarray\nq\x04K\x00\x85U\x01btRq\x05"
    kind = b"cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    n, width = value.shape
    shape = b"M" + struct.pack("<H", n) + b"M" + struct.pack("<H", width) + b"\x86"
    return empty + b"(K\x01" + shape + kind + b"\x89T" + struct.pack("<i", value.nbytes) + value.tobytes() + b"tb"


def _short(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode() + b"q\x07"


def pack(folder: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)


def write_svhn(root: Path, n: int = 40) -> Arrays:
    """MATLAB's format, version 5, the digit 0 as 10."""
    draw, arrays = np.random.default_rng(0), {}
    root.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        arrays[name] = draw.integers(0, 256, (32, 32, 3, n), np.uint8)
        labels = (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]
        savemat(root / f"{name}_32x32.mat", {"X": arrays[name], "y": labels}, do_compression=True)
    return arrays
