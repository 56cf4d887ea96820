"""Whatever lies in an .npz or a folder of images: it is read rightly, or refused in a sentence. Good and bad files are drawn, mixed."""

import os
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
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
SEEDS = st.integers(0, 2**31)


def many(few: int, all_: int, examine: Callable[[st.DataObject, Path], None]) -> None:
    """`examine` with drawn cases, each in a folder of its own: the same few in each fast run, others in each slow one."""
    phases = [Phase.generate]  # making a failing case smaller takes minutes, and it is small

    @settings(max_examples=all_, deadline=None, derandomize=few == all_, phases=phases, suppress_health_check=[*HealthCheck])
    @given(st.data())
    def run(data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            examine(data, Path(place))

    run()


def cases(few: int, all_: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("few", "all_"), [(few, few), pytest.param(few, all_, marks=pytest.mark.slow)])


def tried(call: Callable[..., Any], *arguments: Any) -> Any:
    """What it gives, or None where it is refused in a sentence that can be written anywhere."""
    try:
        return call(*arguments)
    except Mistake as mistake:
        for text in mistake.messages:
            assert SENTENCE.fullmatch(text) and text.encode()
        return None


def examined(source: Source | None, data: str, place: Path) -> None:
    """What was read keeps what a Source promises; it can be prepared, or not, in a sentence; and can be evaluated on."""
    if source:
        for split in filter(None, (source.train, source.test)):
            assert split.images.dtype == torch.uint8 and split.images.ndim == 4 and split.labels.dtype == torch.int64
            assert len(split.images) == len(split.labels) and split.labels.max() < len(source.classes) and split.labels.min() >= 0
        tried(prepare, source, SplitSettings(), "any", "any", 0, place / "prepared")
    found = tried(outside.images, data, None, 0)
    assert found is not None or source is None
    if found:
        x, y = found
        assert x.dtype == torch.float32 and x.ndim == 4 and len(x) == len(y) and 0 <= x.min() <= x.max() <= 1 and y.min() >= 0


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """Mostly whole; else cut, or with some bytes changed."""
    how = data.draw(st.sampled_from(["whole", "whole", "whole", "cut", "changed"]))
    if how == "cut":
        return content[: data.draw(st.integers(0, len(content)))]
    changed, draw = bytearray(content), np.random.default_rng(data.draw(SEEDS))
    for at in draw.integers(0, max(len(content), 1), 0 if how == "whole" or not content else 4):
        changed[at] = draw.integers(256)
    return bytes(changed)


# Arrays -----------------------------------------------------------------------------------------------------------------------------------

FLOATS = ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "longdouble", "u1"]
ODD = ["bool", "i1", ">u2", "<i8", "<u8", "c8", ">c16", "S2", "U2", "m8[s]", "M8[D]", "O", [("a", "u1"), ("b", "<f4")], ("f4", (2,))]
INTEGERS = ["u1", "i1", "<i2", ">u4", "<i8", ">i8", "<u8"]
NAMES = [["a", "b", "c"], ["a", "b", "c", "d"], ["a", "b"], ["a", "a", "b"], [], ["\udcff", "b", "c"], ["a\n", "", "c"], [1, 2, 3]]


def mostly(good: list, bad: list) -> st.SearchStrategy:
    return st.one_of(*[st.sampled_from(good)] * 5, st.sampled_from(bad))


def some_images(data: st.DataObject, n: int) -> np.ndarray:
    shape = data.draw(
        mostly([(n, 2, 3), (n, 1, 2, 3), (n, 3, 2, 2)], [(n, 2, 3, 3), (n,), (), (n, 0, 2, 2), (n, 1, 1, 2, 2), (n + 1, 2, 3)])
    )
    dtype = data.draw(mostly(FLOATS, ODD))
    low, high = data.draw(mostly([(0, 255)] if dtype == "u1" else [(0, 1)], [(0, 0), (-1, 1), (0, 2), (0, np.nan), (0, np.inf)]))
    made = np.random.default_rng(data.draw(SEEDS)).random(shape) * (high - low) + low
    made = made.astype(int).astype(dtype) if dtype in ("m8[s]", "M8[D]") else made.astype(dtype)
    return np.asarray(made, order=data.draw(st.sampled_from("CF")))


def some_labels(data: st.DataObject, n: int) -> np.ndarray:
    """0, 1, 2, 0, ... times a factor plus an offset."""
    times, plus = data.draw(mostly([(1, 0)], [(1, 1), (2, 0), (1, -1), (1, 5), (10**7, 0), (1, 2**62)]))
    made = np.arange(n) % 3 * times + plus
    made = made.astype(data.draw(mostly(INTEGERS, ["<f8", "bool", "m8[s]", "U3", "O"])))
    return made.reshape(data.draw(mostly([made.shape], [(n, 1), (1, n)])))


def arrays(data: st.DataObject) -> dict[str, np.ndarray]:
    made, n = {}, data.draw(st.sampled_from([9, 12, 12, 1, 0]))
    for prefix in ("", "test_"):
        for key, some in (("images", some_images), ("labels", some_labels)):
            if data.draw(mostly([not prefix], [True, False])):
                made[prefix + key] = some(data, n)
    if data.draw(mostly([False], [True])):
        made["classes"] = np.array(data.draw(st.sampled_from(NAMES)))
    if data.draw(mostly([False], [True])):
        made[data.draw(st.sampled_from(["lables", "a/b", "ü"]))] = np.zeros(3)
    return made


@np.errstate(all="ignore")
def an_npz(data: st.DataObject, place: Path) -> None:
    path, made = place / "x.npz", arrays(data)
    with open(path, "wb") as file:
        data.draw(st.sampled_from([np.savez, np.savez_compressed]))(file, **made)
    path.write_bytes(content := damaged(data, whole := path.read_bytes()))
    source = tried(npz.read, npz.Params(file=str(path)))
    examined(source, str(path), place)
    if source and content == whole:
        expected = made["images"] if made["images"].dtype == np.uint8 else np.rint(made["images"].astype(np.float32) * 255)
        assert np.array_equal(source.train.images.numpy().ravel(), expected.ravel().astype(np.uint8))
        assert source.train.labels.tolist() == made["labels"].tolist()


@cases(30, 700)
def test_any_arrays_are_read_rightly_or_refused(few, all_):
    many(few, all_, an_npz)


# Image folders ----------------------------------------------------------------------------------------------------------------------------

FOLDERS = [b"ant", b"bee", "Zürich".encode(), b"a b", b"x.png", b"new\nline", b"e\xcc\x81", b"train", b"test", b"\xff\xfe", b".hidden"]
MODES = ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"]
KINDS = ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "MPO", "TGA", "ICO"]


def picture(data: st.DataObject, path: Path) -> None:
    """An image of some mode and format, perhaps damaged; its suffix is whatever `path` has."""
    height, width = data.draw(mostly([(4, 5)], [(1, 1), (40, 30)]))
    pixels = np.random.default_rng(data.draw(SEEDS)).integers(0, 256, (height, width, 3), np.uint8)
    mode, kind = data.draw(mostly(MODES, ["I", "F", "I;16", "LAB", "HSV"])), data.draw(mostly(KINDS[:7], KINDS))
    whole = Image.fromarray(pixels)
    try:
        (whole.convert("L").convert(mode) if mode in ("I;16", "LA", "I", "F") else whole.convert(mode)).save(path, kind)
    except (OSError, ValueError):  # that format has no such mode
        whole.save(path, "PNG")
    path.write_bytes(damaged(data, path.read_bytes()))


def no_picture(data: st.DataObject, path: Path) -> None:
    {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "link to nothing": lambda: path.symlink_to("gone"),
        "link to itself": lambda: path.symlink_to(path.name),
        "device": lambda: path.symlink_to("/dev/zero"),
        "bytes": lambda: path.write_bytes(data.draw(st.binary(max_size=40))),
        "bomb": lambda: path.write_bytes(b"P6 30000 9000 255\n"),
        "deep": lambda: path.write_bytes(b"P6 4 5 65535\n" + bytes(120)),
    }[data.draw(st.sampled_from(["pipe", "folder", "link to nothing", "link to itself", "device", "bytes", "bomb", "deep"]))]()


def a_folder(data: st.DataObject, place: Path) -> None:
    root = place / "images"
    root.mkdir()
    for name in data.draw(st.lists(st.sampled_from(FOLDERS), max_size=3, unique=True)) + data.draw(mostly([[b"cat", b"dog"]], [[]])):
        inside = root / os.fsdecode(name) / data.draw(mostly([""], ["ant"]))
        inside.mkdir(parents=True, exist_ok=True)
        for number in range(data.draw(mostly([3, 4], [0, 1]))):
            name = os.fsdecode(b"%d" % number + data.draw(mostly([b".png", b".JPG", b".tiff"], [b".txt", b"", b"\xff.png", b".gif"])))
            data.draw(mostly([picture] * 4, [no_picture]))(data, inside / name)
    size, channels = data.draw(st.sampled_from([None, (3, 2), (9, 9)])), data.draw(st.sampled_from([1, 3]))
    source = tried(folder.read, folder.Params(folder=str(root), size=size, channels=channels))
    if source and not size and not source.test:
        within = root / "train" if (root / "train").is_dir() and folder._folders(root / "train") else root
        files = [
            path for one in folder._folders(within) for path in sorted(one.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()
        ]
        for path, pixels in zip(files, source.train.images, strict=True):
            with Image.open(path) as opened:
                expected = np.asarray(opened.convert("L" if channels == 1 else "RGB")).reshape(*pixels.shape[1:], channels)
            assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)
    examined(tried(folder.read, folder.Params(folder=str(root))), str(root), place)


@cases(30, 300)
def test_any_folder_is_read_rightly_or_refused(few, all_):
    many(few, all_, a_folder)
