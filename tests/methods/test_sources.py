"""Every source kind reads what it promises, and names the file, the key and the value when it cannot."""

import importlib
import io
import os
import pickle
import socket
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from published import write_cifar, write_idx, write_svhn
from pydantic import ValidationError

from basin.config.settings import Settings
from basin.config.splits import SplitSettings
from basin.data import image_file
from basin.data.splits import Source, load_split, prepare
from basin.errors import Mistake
from basin.methods import sources
from basin.methods.sources import digits, folder, npz
from basin.registry.serving import decode

KINDS = sorted(path.stem for path in Path(sources.__file__).parent.glob("*.py") if path.stem != "__init__")


def message(call, *arguments) -> str:
    with pytest.raises(Mistake) as mistake:
        call(*arguments)
    return "\n".join(one for one in mistake.value.messages if not one.endswith(folder.ADVICE))


# Every kind -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_keeps_the_contract(kind):
    module = importlib.import_module(f"basin.methods.sources.{kind}")
    assert issubclass(module.Params, Settings) and callable(module.read) and module.__doc__
    fields = module.Params.model_fields
    assert all(field.description for field in fields.values())
    assert not {"kind", *SplitSettings.model_fields} & set(fields)


def test_heavy_imports_wait_until_they_are_needed():
    kinds = ", ".join(f"basin.methods.sources.{kind}" for kind in KINDS)
    code = f"import sys, {kinds}; print([name for name in ('torchvision', 'sklearn', 'PIL') if name in sys.modules])"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root).stdout == "[]\n"


def make_digits(tmp_path: Path) -> Source:
    return digits.read(digits.Params())


def make_mnist(tmp_path: Path) -> Source:
    return read_published("mnist", write_idx, tmp_path)


def make_kmnist(tmp_path: Path) -> Source:
    return read_published("kmnist", write_idx, tmp_path)


def make_fashion_mnist(tmp_path: Path) -> Source:
    return read_published("fashion_mnist", write_idx, tmp_path)


def make_cifar10(tmp_path: Path) -> Source:
    return read_published("cifar10", partial(write_cifar, classes=10), tmp_path)


def make_cifar100(tmp_path: Path) -> Source:
    return read_published("cifar100", partial(write_cifar, classes=100, n=300), tmp_path)


def make_svhn(tmp_path: Path) -> Source:
    return read_published("svhn", write_svhn, tmp_path)


def read_published(kind: str, write: Callable[[Path], Any], root: Path) -> Source:
    """Small files, whose checksums are not those of the published ones."""
    write(root)
    module = importlib.import_module(f"basin.methods.sources.{kind}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("basin.data.published._check", lambda *_: None)
        return module.read(module.Params(folder=str(root)))


def make_folder(tmp_path: Path) -> Source:
    write_images(tmp_path / "images", {"cat": 6, "dog": 5})
    return folder.read(folder.Params(folder=str(tmp_path / "images")))


def make_npz(tmp_path: Path) -> Source:
    return read_npz(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_can_be_prepared_twice_to_the_same_bytes(kind, tmp_path):
    make = globals()[f"make_{kind}"]  # a new kind needs a small example here
    digests = [prepare(make(tmp_path), SplitSettings(), kind, kind, 0, tmp_path / str(run)).digest for run in range(2)]
    assert digests[0] == digests[1]
    assert load_split(tmp_path / "0", "train").floats().max() <= 1


# Digits -----------------------------------------------------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    source = digits.read(digits.Params())
    assert source.train.images.shape == (1797, 1, 8, 8) and source.train.images.dtype == torch.uint8 and source.test is None
    assert (source.train.images.min(), source.train.images.max()) == (0, 255)
    assert np.abs(source.train.floats()[:, 0].numpy() - load_digits().images / 16).max() <= 0.5 / 255 + 1e-6
    assert source.train.labels.tolist() == load_digits().target.tolist()
    assert source.classes == tuple("0123456789")


# Image folder -----------------------------------------------------------------------------------------------------------------------------


def image(value: int, shape: tuple[int, int] = (4, 6), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (shape[1], shape[0]), (value, 2 * value % 256, 7) if mode == "RGB" else value)


def write_images(root: Path, classes: dict[str, int], suffix: str = "png") -> None:
    """Plain images whose red value is 10 x class + number."""
    for label, (name, n) in enumerate(classes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(n):
            image(10 * label + number).save(root / name / f"{number:03}.{suffix}")


def read_folder(root: Path, **keys) -> Source:
    return folder.read(folder.Params(folder=str(root), **keys))


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    write_images(tmp_path, {"ant": 3, "bee": 2})
    source = read_folder(tmp_path)
    assert source.classes == ("ant", "bee") and source.test is None
    assert source.train.images.shape == (5, 3, 4, 6)
    assert source.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11] and source.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert source.train.images[3, :, 2, 2].tolist() == [10, 20, 7]


def test_a_folder_with_train_and_test_keeps_them(tmp_path):
    write_images(tmp_path / "train", {"ant": 3, "bee": 2})
    write_images(tmp_path / "test", {"bee": 1})
    source = read_folder(tmp_path)
    assert (len(source.train), len(source.test), source.classes) == (5, 1, ("ant", "bee"))
    assert source.test.labels.tolist() == [1]


def test_a_folder_with_train_alone_has_no_test_split(tmp_path):
    write_images(tmp_path / "train", {"ant": 3, "bee": 2})
    assert read_folder(tmp_path).test is None


def test_classes_may_be_called_train_and_test(tmp_path):
    write_images(tmp_path, {"test": 3, "train": 2})
    assert read_folder(tmp_path).classes == ("test", "train")


@pytest.mark.parametrize("suffix", ["png", "PNG", "bmp", "jpg", "webp", "tiff"])
def test_suffixes(tmp_path, suffix):
    write_images(tmp_path, {"ant": 2, "bee": 2}, suffix)
    assert read_folder(tmp_path).train.images.shape == (4, 3, 4, 6)


def test_size_and_channels(tmp_path):
    write_images(tmp_path, {"ant": 2, "bee": 2})
    image(9, (8, 8)).save(tmp_path / "ant" / "larger.png")
    assert read_folder(tmp_path, size=[3, 5], channels=1).train.images.shape == (5, 1, 3, 5)


@pytest.mark.parametrize("size", [None, (12, 8)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_that_exif_turns_is_read_upright(tmp_path, orientation, size):
    """Whatever way the camera was held: the bright corner is where a viewer shows it."""
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    upright = np.zeros((12, 8, 3), np.uint8)
    upright[:4, :4] = 255
    held = Image.fromarray(upright)
    if orientation in turns:
        held = held.transpose(getattr(Image.Transpose, turns[orientation]))  # undoes what the viewer will do
    (exif := Image.Exif())[274] = orientation
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(3):
            held.save(tmp_path / name / f"{number}.jpg", exif=exif, quality=95)
    assert folder.sizes(folder.Params(folder=str(tmp_path))) == ({(12, 8)}, 0)
    (found,) = {
        tuple(map(int, image.flatten() > 127)) for image in folder.read(folder.Params(folder=str(tmp_path), size=size)).train.images
    }
    assert found == tuple(map(int, upright.transpose(2, 0, 1).flatten() > 127))


def test_a_damaged_exif_block_turns_nothing(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (8, 4)).save(tmp_path / name / f"{number}.jpg", exif=b"Exif\0\0no TIFF at all")
    assert folder.read(folder.Params(folder=str(tmp_path))).train.images.shape == (6, 3, 4, 8)


def test_colour_becomes_grey_and_grey_becomes_colour(tmp_path):
    write_images(tmp_path, {"ant": 2})
    (tmp_path / "bee").mkdir()
    for number in range(2):
        image(100, mode="L").save(tmp_path / "bee" / f"{number}.png")
    assert read_folder(tmp_path).train.images[3].unique().tolist() == [100]
    assert read_folder(tmp_path, channels=1).train.images[3].unique().tolist() == [100]


def test_decoding_is_pillows(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        Image.fromarray(noise).save(tmp_path / name / "noise.jpg", quality=75)
    with Image.open(tmp_path / "ant" / "noise.jpg") as opened:
        assert np.array_equal(read_folder(tmp_path).train.images[0].permute(1, 2, 0).numpy(), np.asarray(opened))


def test_other_files_are_left_out_and_told(tmp_path, caplog):
    write_images(tmp_path, {"ant": 2, "bee": 2})
    (tmp_path / "ant" / "notes.txt").touch()
    (tmp_path / "ant" / ".DS_Store").touch()
    (tmp_path / ".git").mkdir()
    assert len(read_folder(tmp_path).train) == 4
    assert caplog.messages == [f"{tmp_path / 'ant'}: 1 entries that are not image files are left out"]


def test_images_of_differing_shapes_are_named(tmp_path):
    write_images(tmp_path, {"ant": 3, "bee": 2})
    image(1, (4, 7)).save(tmp_path / "bee" / "000.png")
    assert message(read_folder, tmp_path) == (
        f"{tmp_path}/bee/000.png: images differ in height and width (got [4, 7], and [4, 6] for {tmp_path}/ant/000.png). "
        "Set data.size: [height, width] to resize all of them."
    )


def test_test_images_of_another_shape_are_refused(tmp_path):
    write_images(tmp_path / "train", {"ant": 2, "bee": 2})
    (tmp_path / "test" / "ant").mkdir(parents=True)
    image(1, (8, 8)).save(tmp_path / "test" / "ant" / "000.png")
    assert "test images have another shape than training images (got [3, 8, 8] and [3, 4, 6]" in message(read_folder, tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", "half"])
def test_an_unreadable_image_is_named(tmp_path, content):
    write_images(tmp_path, {"ant": 3, "bee": 2})
    path = tmp_path / "bee" / "001.png"
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(whole, "png")
    path.write_bytes(whole.getvalue()[:1000] if content == "half" else content)
    text = message(read_folder, tmp_path)
    assert text.startswith(f"{path}: cannot be read as an image (got ") and text.endswith(
        "). Give a whole PNG or JPEG or BMP or GIF or WEBP or TIFF or PPM file."
    )


def test_sixteen_bits_are_refused_rather_than_clipped(tmp_path):
    write_images(tmp_path, {"ant": 1, "bee": 1})
    Image.fromarray(np.full((4, 6), 40000, np.uint16)).save(tmp_path / "ant" / "000.png")
    assert message(read_folder, tmp_path) == (
        f"{tmp_path}/ant/000.png: more than 8 bits a channel (got mode I;16). Convert it to 8 bits first."
    )


def png(depth: int, colour: int, size: tuple[int, int] = (4, 6), whole: bool = True, damaged: bool = False) -> bytes:
    """A grey PNG of any bit depth and colour type, which Pillow cannot write; or the header of one, or one of damaged pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = size
    pixels = (b"\0" + b"\x80" * (width * {0: 1, 2: 3, 4: 2, 6: 4}[colour] * depth // 8)) * height if whole else b""
    stored = zlib.compress(pixels, 0 if damaged else -1)
    stored = stored[:2] + b"\xff" + stored[3:] if damaged else stored  # no block of that kind
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", stored) + chunk(b"IEND", b"")


def test_damaged_pixels_are_no_image_though_the_exif_was_asked_for_first(tmp_path):
    """Of a PNG Pillow decodes the pixels for that, and after an error gives what it has."""
    (tmp_path / "a.png").write_bytes(png(8, 2, damaged=True))
    for read in (image_file.sides, lambda image: image_file.pixels(image, 3), lambda image: image_file.pixels(image, 1, (2, 2))):
        with pytest.raises(Mistake, match=r"^a: cannot be read as an image \(got broken data stream"):
            with image_file.opened("a", tmp_path / "a.png") as image:
                read(image)


def tiff(bits: int, channels: int, size: tuple[int, int] = (4, 6)) -> bytes:
    """A plain little-endian TIFF of colour."""
    height, width = size
    pixels = b"\x80" * (height * width * channels * bits // 8)
    at = 8 + len(pixels)  # of the bits of each sample, then of the table
    samples = struct.pack(f"<{channels}H", *[bits] * channels)
    fields = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, at), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 8)]
    fields += [(277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, len(pixels)), *([(338, 3, 1, 2)] if channels == 4 else [])]
    table = struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", *field) for field in fields) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, at + len(samples)) + pixels + samples + table


def test_the_files_that_the_next_test_makes_are_read_at_8_bits(tmp_path):
    contents = [png(8, colour) for colour in (0, 2, 4, 6)] + [tiff(8, 3), tiff(8, 4), b"P6 6 4 255\n" + bytes([128] * 72)]
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for number, content in enumerate(contents):
            (tmp_path / name / f"{number}.png").write_bytes(content)
    assert read_folder(tmp_path).train.images.unique().tolist() == [128]


@pytest.mark.parametrize(
    "content, mode",
    [
        (png(16, 0), "I;16"),
        (png(16, 2), "RGB;16"),
        (png(16, 4), "RGBA;16"),
        (png(16, 6), "RGBA;16"),
        (tiff(16, 3), "RGB;16"),
        (tiff(16, 4), "RGBA;16"),
        (b"P6 6 4 65535\n" + bytes(144), "RGB;16"),
        (b"P6 6 4 1023\n" + bytes(144), "RGB;10"),
        (b"P5 6 4 65535\n" + bytes(48), "I"),
        (b"P3 6 4 4095\n" + b"7 " * 72, "RGB;12"),
        (b"Pf\n6 4\n-1.0\n" + bytes(96), "F"),
    ],
    ids=str,
)
def test_more_than_eight_bits_are_refused_in_colour_too(tmp_path, content, mode):
    """Pillow brings 16-bit colour to 8 bits without a word; both readers of image files refuse it."""
    write_images(tmp_path, {"ant": 1, "bee": 1})
    path = tmp_path / "ant" / "000.png"
    path.write_bytes(content)
    assert message(read_folder, tmp_path) == f"{path}: more than 8 bits a channel (got mode {mode}). Convert it to 8 bits first."
    assert message(decode, path, (3, 4, 6)) == f"image: more than 8 bits a channel (got mode {mode}). Convert it to 8 bits first."


@pytest.mark.parametrize("kind", ["JPEG2000", "EPS"])
def test_formats_beside_the_listed_ones_are_not_tried(tmp_path, kind):
    """EPS would run Ghostscript; JPEG 2000 of 16 bits would come as 8."""
    write_images(tmp_path, {"ant": 1, "bee": 1})
    path = tmp_path / "ant" / "000.png"
    image(1, (16, 16)).save(path, kind)
    assert message(read_folder, tmp_path).startswith(f"{path}: cannot be read as an image (got other bytes). Give a whole PNG or JPEG")


@pytest.mark.parametrize("size", [(9000, 9000), (1, 2**27), (12000, 12000), (30000, 30000), (2**31 - 1, 2**31 - 1)], ids=str)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_large_images_are_refused_by_their_header(tmp_path, size):
    """There is nothing but a header here: decoding would say "truncated"."""
    write_images(tmp_path, {"ant": 1, "bee": 1})
    path = tmp_path / "ant" / "000.png"
    path.write_bytes(png(8, 2, size, whole=False))
    for text, where in ((message(lambda: read_folder(tmp_path, size=[5, 5])), path), (message(decode, path, (3, 5, 5), True), "image")):
        assert text.startswith(f"{where}: too large to decode (got ") and text.endswith("). Scale it down to at most 67,108,864 pixels.")
        assert f"(got {size[0]} x {size[1]} pixels)" in text or f"({size[0] * size[1]} pixels)" in text  # the second is Pillow's limit


def test_a_jpeg_that_is_made_smaller_is_decoded_smaller(tmp_path):
    """At an eighth, as Pillow's thumbnails are; the average of what is left is the picture's."""
    ramp = np.repeat(np.linspace(0, 255, 1600).astype(np.uint8)[None], 1600, 0)
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        Image.fromarray(ramp).save(tmp_path / name / "000.jpg", quality=95)
    small = read_folder(tmp_path, size=[4, 5], channels=1).train.images[0, 0]
    whole = np.asarray(Image.fromarray(ramp).resize((5, 4), Image.Resampling.BILINEAR))
    assert np.abs(small.numpy().astype(int) - whole).max() <= 2
    with image_file.opened("x", tmp_path / "ant" / "000.jpg") as opened:
        image_file.pixels(opened, 1, (4, 5))
        assert opened.size == (200, 200)


def test_what_is_no_file_is_left_out_and_named(tmp_path, caplog):
    """Opening a pipe would wait for ever."""
    write_images(tmp_path, {"ant": 2, "bee": 2})
    os.mkfifo(tmp_path / "ant" / "pipe.png")
    (tmp_path / "ant" / "folder.png").mkdir()
    (tmp_path / "ant" / "device.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(tmp_path / "ant" / "socket.png"))  # its address may have some hundred bytes
    (tmp_path / "ant" / "linked.png").symlink_to(tmp_path / "bee" / "000.png")
    source = read_folder(tmp_path)
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1] and source.train.images[2, 0, 0, 0] == 10
    assert caplog.messages == [f"{tmp_path / 'ant'}: left out, as they are no files: device.jpg, folder.png, pipe.png, socket.png"]


@pytest.mark.parametrize("place", ["ant/002.png", "cow"])
def test_a_link_to_nothing_is_named(tmp_path, place):
    """An image, or a whole class, that is silently missing would be another data set."""
    write_images(tmp_path, {"ant": 2, "bee": 2})
    (tmp_path / place).symlink_to("gone")
    assert message(read_folder, tmp_path) == f"{tmp_path}/{place}: a link to nothing (got 'gone'). Bring back what it names, or remove it."


@pytest.mark.parametrize("place", [b"b\xffe", b"ant/\xff.png"])
def test_names_that_are_not_utf8_are_refused_before_anything_is_decoded(tmp_path, place):
    write_images(tmp_path, {"ant": 2, "bee": 2})
    os.rename(tmp_path / "bee" / "000.png" if b"/" in place else tmp_path / "bee", os.fsencode(tmp_path) + b"/" + place)
    (tmp_path / "ant" / "000.png").write_bytes(b"damaged")
    where, name = (tmp_path / "ant", r"b'\xff.png'") if b"/" in place else (tmp_path, r"b'b\xffe'")
    assert message(read_folder, tmp_path) == f"{where}: a name in it is not UTF-8 (got {name}). Rename it."


def test_names_that_differ_in_case_or_in_form_alone_are_classes_of_their_own(tmp_path):
    names = ["Ant", "ant", "e\u0301", "\u00e9"]
    write_images(tmp_path, dict.fromkeys(names, 2))
    assert read_folder(tmp_path).classes == tuple(names)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_path_that_cannot_be_is_told(name):
    assert message(read_folder, Path(name)).startswith("data.folder: no such folder (got ")
    assert message(npz.read, npz.Params(file=name)).startswith("data.file: no such file (got ")


def test_folders_that_are_not_laid_out(tmp_path):
    assert message(read_folder, tmp_path / "none").startswith(f"data.folder: no such folder (got {tmp_path}/none).")
    assert message(read_folder, tmp_path).startswith(f"{tmp_path}: no sub-folders. Lay images out as {tmp_path}/<class>/<image>.png")
    write_images(tmp_path, {"ant": 1, "bee": 0})
    assert message(read_folder, tmp_path).startswith(f"{tmp_path}/bee: no image files directly inside. Lay images out as ")
    write_images(tmp_path / "one", {"ant": 1})
    assert "at least two classes (got ['ant'])" in message(read_folder, tmp_path / "one")


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
@pytest.mark.parametrize("test", [True, False])
def test_the_validation_folder_is_that_split(tmp_path, name, test):
    for split in ("train", name, *["test"] * test):
        write_images(tmp_path / split, {"ant": 4, "bee": 3})
    source = read_folder(tmp_path)
    about = prepare(source, SplitSettings(), "mine", "folder", 0, tmp_path / "out")
    assert about.counts == ({"train": 7, "validation": 7, "test": 7} if test else {"train": 5, "validation": 7, "test": 2})
    assert torch.equal(source.validation.images, source.train.images)


def test_other_folders_beside_train_are_refused(tmp_path):
    for name in ("train", "val", "extra"):
        write_images(tmp_path / name, {"ant": 2, "bee": 2})
    assert message(read_folder, tmp_path) == (
        f"{tmp_path}: a folder beside train/, test/ and val/ would go unread (got 'extra'). Merge it into one of them, or move it away."
    )
    (tmp_path / "extra").rename(tmp_path / "valid")
    assert message(read_folder, tmp_path) == f"{tmp_path}: two folders for one split (got val/ and valid/). Merge them."


def test_a_test_class_that_train_lacks_is_named(tmp_path):
    write_images(tmp_path / "train", {"ant": 2, "bee": 2})
    write_images(tmp_path / "test", {"bees": 2})
    assert message(read_folder, tmp_path) == f"{tmp_path}/test/bees: a class that train/ does not have (got 'bees'). Did you mean 'bee'?"


@pytest.mark.parametrize("keys", [{"size": [0, 8]}, {"size": [8]}, {"size": 8}, {"size": ["8", "8"]}, {"channels": 2}, {"colour": 3}])
def test_folder_settings_that_cannot_be_are_refused(keys):
    with pytest.raises(ValidationError):
        folder.Params(folder="images", **keys)


# Arrays -----------------------------------------------------------------------------------------------------------------------------------

DRAW = np.random.default_rng(0)
GOOD = {"images": DRAW.integers(0, 256, (12, 3, 4, 5), np.uint8), "labels": np.arange(12) % 3}


def test_an_archive_of_more_than_there_is_memory_for_is_not_unpacked(tmp_path):
    """What its directory says is enough: nothing is read."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"")
        archive.infolist()[0].file_size = 1 << 50
    text = message(lambda: npz.read(npz.Params(file=str(path))))
    assert text.startswith(f"{path}: unpacks to more than this machine's memory (got {1 << 50:,} of ")
    assert text.endswith(" bytes). Write fewer images into it.")


def read_npz(folder: Path, **arrays) -> Source:
    """A file of GOOD with `arrays` instead; None leaves a key out."""
    kept = {key: array for key, array in {**GOOD, **arrays}.items() if array is not None}
    np.savez(folder / "x.npz", **kept)
    return npz.read(npz.Params(file=str(folder / "x.npz")))


def test_arrays_of_a_validation_split_are_it(tmp_path):
    own = {"validation_images": GOOD["images"][:2], "validation_labels": GOOD["labels"][:2]}
    assert len(read_npz(tmp_path, **own).validation) == 2
    text = message(lambda: read_npz(tmp_path, validation_images=own["validation_images"]))
    assert text == f"{tmp_path}/x.npz: validation_labels: absent (got keys labels, validation_images). Add it with numpy.savez."


def test_arrays_are_read_as_they_are(tmp_path):
    source = read_npz(tmp_path, test_images=GOOD["images"][:2], test_labels=GOOD["labels"][:2], classes=np.array(["a", "b", "ç"]))
    assert torch.equal(source.train.images, torch.from_numpy(GOOD["images"])) and source.train.labels.tolist() == GOOD["labels"].tolist()
    assert len(source.test) == 2 and source.classes == ("a", "b", "ç")


def test_class_names_and_the_channel_axis_may_be_left_out(tmp_path):
    source = read_npz(tmp_path, images=GOOD["images"][:, 0], labels=GOOD["labels"].astype(np.uint8))
    assert source.train.images.shape == (12, 1, 4, 5) and source.classes == ("0", "1", "2") and source.test is None
    assert source.train.labels.dtype == torch.int64


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["float16", "float32", "float64"]), st.integers(0, 2**31))
def test_floats_come_back_to_half_a_grey_level(tmp_path_factory, dtype, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 1, 3, 3), np.uint8)
    source = read_npz(tmp_path_factory.mktemp("x"), images=(pixels / 255).astype(dtype), labels=np.arange(9) % 3)
    assert np.array_equal(source.train.images.numpy(), pixels)


def test_floats_in_several_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "CHUNK", 5)
    source = read_npz(tmp_path, images=GOOD["images"] / np.float32(255))
    assert np.array_equal(source.train.images.numpy(), GOOD["images"])


def with_value(value: float) -> np.ndarray:
    images = np.full((12, 1, 2, 2), 0.5, np.float32)
    images[7, 0, 1, 1] = value
    return images


@pytest.mark.parametrize(
    "arrays, why",
    [
        ({"images": None}, "images: absent (got keys labels). Add it with numpy.savez."),
        ({"test_labels": GOOD["labels"]}, "test_images: absent (got keys labels, test_labels). Add it with numpy.savez."),
        ({"lables": GOOD["labels"]}, "unknown key (got 'lables'). Did you mean 'labels'?"),
        (
            {"images": GOOD["images"][0, 0]},
            "images: needs shape [n, c, h, w] or [n, h, w], none of them 0 (got [4, 5]). Reshape the array.",
        ),
        (
            {"images": GOOD["images"][:0]},
            "images: needs shape [n, c, h, w] or [n, h, w], none of them 0 (got [0, 3, 4, 5]). Reshape the array.",
        ),
        (
            {"images": GOOD["images"].transpose(0, 2, 3, 1)},
            "images: channels come last (got [12, 4, 5, 3]). Store images.transpose(0, 3, 1, 2).",
        ),
        (
            {"images": np.zeros((12, 6, 5, 4), np.uint8)},
            "images: channels come last (got [12, 6, 5, 4]). Store images[..., :-1].transpose(0, 3, 1, 2).",
        ),
        ({"images": GOOD["images"] // 255}, "images: uint8 means 0..255 (got a maximum of 1). Multiply by 255, or store floats in [0, 1]."),
        (
            {"images": GOOD["images"].astype(int)},
            "images: needs uint8, or float in [0, 1] (got int64). Store images.astype('uint8') if they are 0..255.",
        ),
        ({"images": GOOD["images"] > 9}, "images: needs uint8, or float in [0, 1] (got bool). Store images.astype('float32')."),
        (
            {"images": GOOD["images"].astype(">u2")},
            "images: needs uint8, or float in [0, 1] (got >u2). Store images.astype('uint8') if they are 0..255.",
        ),
        (
            {"images": GOOD["images"] / (1 + 0j)},
            "images: needs uint8, or float in [0, 1] (got complex128). Store images.astype('uint8') if they are 0..255.",
        ),
        (
            {"images": GOOD["images"].view([("grey", "u1")])},
            "images: needs uint8, or float in [0, 1] (got [('grey', 'u1')]). Store images.astype('uint8') if they are 0..255.",
        ),
        ({"images": with_value(np.nan)}, "images: float images must be in [0, 1] (got nan). Remove the images that hold NaN."),
        ({"images": with_value(1.5)}, "images: float images must be in [0, 1] (got 1.5). Scale them to [0, 1], or store uint8 in 0..255."),
        (
            {"images": with_value(-0.5)},
            "images: float images must be in [0, 1] (got -0.5). Scale them to [0, 1], or store uint8 in 0..255.",
        ),
        (
            {"images": with_value(-np.inf)},
            "images: float images must be in [0, 1] (got -inf). Scale them to [0, 1], or store uint8 in 0..255.",
        ),
        ({"labels": GOOD["labels"][:-1]}, "labels: one label an image is needed (got 11 for 12). Mend labels."),
        ({"labels": np.eye(12, dtype=int)}, "labels: needs shape [n] (got [12, 12]). Store labels.argmax(1) if they are one-hot."),
        ({"labels": GOOD["labels"][:, None]}, "labels: needs shape [n] (got [12, 1]). Store labels.ravel()."),
        ({"labels": GOOD["labels"] / 1}, "labels: needs an integer dtype (got float64). Store labels.astype('int64')."),
        (
            {"labels": GOOD["labels"].astype("m8[s]")},
            "labels: needs an integer dtype (got timedelta64[s]). Store labels.astype('int64').",
        ),
        (
            {"labels": GOOD["labels"] + 1},
            "labels: count from 1 (got 1..3, none is 0). Store labels - 1, or, "
            "if class 0 has no image here, the names of all 4 classes in `classes`.",
        ),
        (
            {"labels": GOOD["labels"] + 1, "classes": np.array(["a", "b", "c"])},
            "labels: count from 1 (got 1..3, none is 0). Store labels - 1, or, "
            "if class 0 has no image here, the names of all 4 classes in `classes`.",
        ),
        (
            {"labels": GOOD["labels"] * 2},
            "labels: 2 of the classes 0..4 have no image (got none of 1, 3). "
            "Number the classes without gaps, or name all of them in `classes`.",
        ),
        (
            {"labels": GOOD["labels"] * 400},
            "labels: 798 of the classes 0..800 have no image (got none of 1, 2, 3, ...). "
            "Number the classes without gaps, or name all of them in `classes`.",
        ),
        ({"labels": GOOD["labels"] - 1}, "labels: labels count from 0 to the number of classes (got -1). Number the classes 0, 1, 2, ..."),
        (
            {"labels": GOOD["labels"] + 10**12},
            "labels: labels count from 0 to the number of classes (got 1000000000002). Number the classes 0, 1, 2, ...",
        ),
        (
            {"labels": GOOD["labels"].astype(np.uint64) + 2**63},
            "labels: labels count from 0 to the number of classes (got 9223372036854775810). Number the classes 0, 1, 2, ...",
        ),
        ({"classes": np.array(["a", "b"])}, "labels: labels must be in 0..1 (got 2). Renumber or name the classes."),
        (
            {"classes": np.array([0x110000, 65, 66], np.uint32).view("U1")},
            "classes: not text (got invalid maximum character passed to PyUnicode_New). Store numpy.array(names, dtype=str).",
        ),
        ({"classes": np.arange(3)}, "classes: needs strings [classes] (got int64 [3]). Store numpy.array(names, dtype=str)."),
        (
            {"test_images": GOOD["images"], "test_labels": GOOD["labels"] + 1},
            "test_labels: labels must be in 0..2 (got 3). Renumber or name the classes.",
        ),
        (
            {"test_images": GOOD["images"][:, :1], "test_labels": GOOD["labels"]},
            "test_images: another shape than images (got [1, 4, 5] and [3, 4, 5]). Bring them to one shape.",
        ),
    ],
)
def test_wrong_arrays_name_file_key_and_value(tmp_path, arrays, why):
    where = f"{tmp_path}/x.npz: "
    assert message(lambda: read_npz(tmp_path, **arrays)) == where + why


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["uint8", ">f2", ">f4", "<f4", ">f8", "longdouble", ">u1"])
@pytest.mark.parametrize("labels", ["u1", ">u2", ">i4", ">i8", "<u8"])
def test_every_byte_order_width_and_layout_is_read_rightly(tmp_path, dtype, order, labels):
    pixels = GOOD["images"] if np.dtype(dtype) == np.uint8 else GOOD["images"] / np.longdouble(255)
    source = read_npz(tmp_path, images=np.asarray(pixels, dtype, order=order), labels=GOOD["labels"].astype(labels))
    assert torch.equal(source.train.images, torch.from_numpy(GOOD["images"]))
    assert source.train.labels.dtype == torch.int64 and source.train.labels.tolist() == GOOD["labels"].tolist()
    floats, found = npz.exact(npz.Params(file=f"{tmp_path}/x.npz"))
    assert floats.dtype == torch.float32 and found.tolist() == GOOD["labels"].tolist()
    assert torch.equal(floats, torch.from_numpy(pixels.astype(dtype).astype(np.float32) / (255 if np.dtype(dtype) == np.uint8 else 1)))


def test_exact_floats_are_checked_by_all_labels_of_the_file(tmp_path, caplog):
    """What is attacked is the test split; that the file counts from 1 may show in the other labels alone."""
    params, test = npz.Params(file=f"{tmp_path}/x.npz"), {"test_images": GOOD["images"][:2], "test_labels": np.array([1, 2])}
    read_npz(tmp_path, **test)
    assert npz.exact(params)[1].tolist() == [1, 2] and not caplog.messages
    for arrays, why in (
        ({"labels": GOOD["labels"] + 1}, "labels: count from 1 (got 1..3, none is 0)"),
        ({"test_labels": np.array([1, 3])}, "test_labels: labels must be in 0..2 (got 3)"),
    ):
        text = message(lambda arrays=arrays: read_npz(tmp_path, **(test | arrays)))
        assert text == message(npz.exact, params) and text.startswith(f"{tmp_path}/x.npz: {why}")
    np.savez(tmp_path / "x.npz", images=GOOD["images"], labels=GOOD["labels"] * 2)
    assert npz.exact(params)[1].max() == 4  # some of the classes of a model that knows more
    assert caplog.messages[0].startswith(f"{tmp_path}/x.npz: labels: 2 of the classes 0..4 have no image (got none of 1, 3).")


def test_named_classes_may_have_no_image(tmp_path):
    assert len(read_npz(tmp_path, labels=GOOD["labels"] + 1, classes=np.array(list("abcd"), dtype=">U1")).classes) == 4


@pytest.mark.parametrize("name", ["images.npy", "images"])
def test_members_that_are_no_arrays_are_named(tmp_path, name):
    """numpy gives the bytes of such a member."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr(name, b"something")
    text = message(npz.read, npz.Params(file=f"{tmp_path}/x.npz"))
    assert text.startswith(f"{tmp_path}/x.npz: images: not a readable array (got ")


def test_an_array_larger_than_memory_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive, archive.open("images.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 3, 10**5, 10**5)})
    text = message(npz.read, npz.Params(file=f"{tmp_path}/x.npz"))
    assert text.startswith(f"{tmp_path}/x.npz: images: not a readable array (got ")


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = message(lambda: read_npz(tmp_path, labels=np.array([Bomb()] * 12, dtype=object)))
    assert text.startswith(f"{tmp_path}/x.npz: labels: not a readable array (got Object arrays cannot be loaded when allow_pickle=False)")
    Path("y.npz").write_bytes(pickle.dumps(Bomb()))
    assert message(npz.read, npz.Params(file="y.npz")).startswith("y.npz: not a readable array (got ")
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    "damage", [lambda old: b"", lambda old: old[:-30], lambda old: old[:300] + b"\xff" * 300 + old[600:], lambda old: b"text"]
)
def test_damaged_archives_are_named(tmp_path, damage):
    np.savez_compressed(tmp_path / "x.npz", **GOOD)
    (tmp_path / "x.npz").write_bytes(damage((tmp_path / "x.npz").read_bytes()))
    assert message(npz.read, npz.Params(file=str(tmp_path / "x.npz"))).startswith(f"{tmp_path}/x.npz: ")


def test_a_lone_array_and_an_absent_file_are_told(tmp_path):
    np.save(tmp_path / "x.npy", GOOD["images"])
    assert "not a readable array" in message(npz.read, npz.Params(file=str(tmp_path / "x.npy")))
    assert message(npz.read, npz.Params(file=f"{tmp_path}/none.npz")) == (
        f"data.file: no such file (got {tmp_path}/none.npz). Give the path of an .npz file with images, labels."
    )
