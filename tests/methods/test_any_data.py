"""Whatever lies in an .npz or a folder of images: it is read rightly, or refused in a sentence. Good and bad files are drawn, mixed."""

import os
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from basin.config.splits import SplitSettings
from basin.data.image_file import SUFFIXES
from basin.data.splits import Source, prepare
from basin.errors import Mistake
from basin.evaluation import outside
from basin.methods.sources import folder, npz

SENTENCE = re.compile(r".+: .+\. .+", re.DOTALL)
RARE = 0.03  # of each of a dozen choices: about half of the files are good, and most of the others have one fault


def mostly(draw: Random, good: Sequence, bad: Sequence) -> Any:
    return draw.choice(bad if draw.random() < RARE else good)


def examine(examples: int, one: Callable[[Random, Path], bool]) -> None:
    """`one` on drawn cases, each in a folder of its own: the same in each fast run, others in each slow one. Some have to be read."""
    read = []

    @settings(
        max_examples=examples, deadline=None, derandomize=examples < 100, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
    )
    @given(st.randoms(use_true_random=True))
    def run(draw: Random) -> None:
        with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read.append(one(draw, Path(place)))

    run()
    assert 0.2 < sum(read) / len(read) < 0.9


def tried(call: Callable[..., Any], *arguments: Any) -> Any:
    """What it gives, or None where it is refused in a sentence that can be written anywhere."""
    try:
        return call(*arguments)
    except Mistake as mistake:
        for text in mistake.messages:
            assert SENTENCE.fullmatch(text) and text.encode()
        return None


def promised(source: Source | None, data: str, place: Path) -> None:
    """What was read keeps what a Source promises; it can be prepared, or not, in a sentence; and can be evaluated on."""
    if source:
        for split in filter(None, (source.train, source.test)):
            assert split.images.dtype == torch.uint8 and split.images.ndim == 4 and split.labels.dtype == torch.int64
            assert len(split.images) == len(split.labels) and 0 <= split.labels.min() <= split.labels.max() < len(source.classes)
        tried(prepare, source, SplitSettings(), "any", "any", 0, place / "prepared")
    found = tried(outside.images, data, None, 0)
    assert found or not source
    if found:
        x, y = found
        assert x.dtype == torch.float32 and x.ndim == 4 and len(x) == len(y) and 0 <= x.min() <= x.max() <= 1 and y.min() >= 0


def damaged(draw: Random, content: bytes) -> bytes:
    """Mostly whole; else cut, or with some bytes changed."""
    how = mostly(draw, ["whole"], ["cut", "changed"])
    changed = bytearray(content if how != "cut" else content[: draw.randint(0, len(content))])
    for _ in range(4 if how == "changed" else 0):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


# Arrays -----------------------------------------------------------------------------------------------------------------------------------

FLOATS = ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "longdouble", "u1"]
ODD = ["bool", "i1", ">u2", "<i8", "<u8", "c8", ">c16", "S2", "U2", "m8[s]", "M8[D]", "O", [("a", "u1"), ("b", "<f4")]]
INTEGERS = ["u1", "i1", "<i2", ">u4", "<i8", ">i8", "<u8"]
BAD_NAMES = [["a", "b"], ["a", "a", "b"], [], ["\udcff", "b", "c"], [1, 2, 3], [b"a", b"b", b"c"], [["a", "b", "c"]]]


def some_images(draw: Random, shape: tuple[int, ...]) -> np.ndarray:
    n, h, w = shape[0], *shape[-2:]
    shape = mostly(draw, [shape], [(n, h, w, 3), (n,), (), (n, 0, h, w), (n, 1, 1, h, w), (n + 1, h, w)])
    dtype = mostly(draw, FLOATS, ODD)
    low, high = mostly(draw, [(0, 255 if dtype == "u1" else 1)], [(0, 0), (-1, 1), (0, 2), (0, 255), (0, np.nan), (0, np.inf)])
    made = np.random.default_rng(draw.getrandbits(32)).random(shape) * (high - low) + low
    made = made.astype("i8").astype(dtype) if str(dtype)[0] in "mM" else made.astype(dtype)
    return np.asarray(made, order=draw.choice("CF"))


def some_labels(draw: Random, n: int) -> np.ndarray:
    """0, 1, 2, 0, ... times a factor plus an offset."""
    times, plus = mostly(draw, [(1, 0)], [(1, 1), (2, 0), (1, -1), (1, 5), (10**7, 0), (1, 2**62)])
    made = (np.arange(n) % 3 * times + plus).astype(mostly(draw, INTEGERS, ["<f8", "bool", "m8[s]", "U3", "O"]))
    return made.reshape(mostly(draw, [(n,)], [(n, 1), (1, n)]))


def arrays(draw: Random) -> dict[str, np.ndarray]:
    n, test = mostly(draw, [9, 12], [0, 1, 2]), draw.random() < 0.3
    shape = draw.choice([(n, 2, 3), (n, 1, 2, 3), (n, 3, 2, 2)])
    made = {"images": some_images(draw, shape), "labels": some_labels(draw, n)}
    made |= {"test_images": some_images(draw, shape), "test_labels": some_labels(draw, n)} if test else {}
    if draw.random() < 0.3:
        made["classes"] = np.array(mostly(draw, [["a", "b", "c"], ["a\n", "", "ç", "d"]], BAD_NAMES))
    if missing := mostly(draw, [None], [*made]):
        made.pop(missing)
    return made | mostly(draw, [{}], [{"lables": np.zeros(3)}, {"a/b": np.zeros(3)}, {"ü": np.zeros(3)}])


@np.errstate(all="ignore")
def an_npz(draw: Random, place: Path) -> bool:
    path, made = place / "x.npz", arrays(draw)
    draw.choice([np.savez, np.savez_compressed])(path, **made)
    whole = path.read_bytes()
    path.write_bytes(content := damaged(draw, whole))
    source = tried(npz.read, npz.Params(file=str(path)))
    promised(source, str(path), place)
    if source and content == whole:
        images = made["images"]
        expected = images if images.dtype == np.uint8 else np.rint(images.astype(np.float32) * 255).astype(np.uint8)
        assert np.array_equal(source.train.images.numpy().reshape(images.shape), expected)
        assert source.train.labels.tolist() == made["labels"].tolist()
    return bool(source)


@pytest.mark.parametrize("examples", [30, pytest.param(700, marks=pytest.mark.slow)])
def test_any_arrays_are_read_rightly_or_refused(examples):
    examine(examples, an_npz)


# Image folders ----------------------------------------------------------------------------------------------------------------------------

NAMES = [b"ant", "Zürich".encode(), b"a b", b"x.png", b"new\nline", b"e\xcc\x81", b".hidden"]
SOME = [b".png", b".JPG", b".tiff", b".gif", b".txt", b""]
MODES = ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"]
KINDS = ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM"]
NO_PICTURES: dict[str, Callable[[Random, Path], Any]] = {
    "pipe": lambda _, path: os.mkfifo(path),
    "folder": lambda _, path: path.mkdir(),
    "link to nothing": lambda _, path: path.symlink_to("gone"),
    "link to itself": lambda _, path: path.symlink_to(path.name),
    "device": lambda _, path: path.symlink_to("/dev/zero"),
    "bytes": lambda draw, path: path.write_bytes(draw.randbytes(draw.randrange(40))),
    "bomb": lambda _, path: path.write_bytes(b"P6 30000 9000 255\n"),
    "deep": lambda _, path: path.write_bytes(b"P6 4 5 65535\n" + bytes(120)),
}


def picture(draw: Random, path: Path, size: tuple[int, int]) -> None:
    """An image of some mode and format, perhaps damaged; its suffix is whatever `path` has."""
    height, width = mostly(draw, [size], [(1, 1), (70, 90)])
    whole = Image.fromarray(np.random.default_rng(draw.getrandbits(32)).integers(0, 256, (height, width, 3), np.uint8))
    mode, kind = mostly(draw, MODES, ["I", "F", "I;16", "LAB", "HSV"]), mostly(draw, KINDS, ["TGA", "ICO", "JPEG2000"])
    try:
        (whole.convert("L") if mode in ("I", "F", "I;16", "LA") else whole).convert(mode).save(path, kind)
    except (OSError, ValueError):  # that format has no such mode
        whole.save(path, "PNG")
    path.write_bytes(damaged(draw, path.read_bytes()))


def some_class(draw: Random, inside: Path, size: tuple[int, int]) -> None:
    inside.mkdir(parents=True)
    for number in range(mostly(draw, [3, 4], [0, 1])):
        path = inside / os.fsdecode(b"%d" % number + mostly(draw, SOME, [b"\xff.png"]))
        if what := mostly(draw, [None], [*NO_PICTURES]):
            NO_PICTURES[what](draw, path)
        else:
            picture(draw, path, size)


def a_folder(draw: Random, place: Path) -> bool:
    root, size = place / "images", draw.choice([(4, 5), (20, 9)])
    (root / "train" if (divided := draw.random() < 0.3) else root).mkdir(parents=True)
    for name in {b"bee", draw.choice(NAMES), *mostly(draw, [[b"cat"]], [[], [b"\xff\xfe"], [b"train"], [b"test"]])}:
        for part in ("train", "test")[: mostly(draw, [1, 2], [0])] if divided else ("",):
            some_class(draw, root / part / os.fsdecode(name), size)
    to, channels = draw.choice([None, None, (3, 2)]), draw.choice([1, 3])
    source = tried(folder.read, folder.Params(folder=str(root), size=to, channels=channels))
    if source and not to:
        as_pillow_reads_them(source, root / "train" if divided else root, channels)
    promised(tried(folder.read, folder.Params(folder=str(root))), str(root), place)
    return bool(source)


def as_pillow_reads_them(source: Source, root: Path, channels: int) -> None:
    files = [
        path for name in source.classes for path in sorted((root / name).iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()
    ]
    for path, pixels in zip(files, source.train.images, strict=True):
        with Image.open(path) as opened:
            expected = np.asarray(opened.convert("L" if channels == 1 else "RGB")).reshape(*pixels.shape[1:], channels)
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("examples", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_any_folder_is_read_rightly_or_refused(examples):
    examine(examples, a_folder)
