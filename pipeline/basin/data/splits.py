"""Data sets: what a source gives, how it is divided, and what every later stage reads.

A source kind (`basin/methods/sources/<kind>.py`) reads files and returns a `Source`. `prepare` divides it, by seed and by class, into
train, validation and test, and writes

    train.safetensors  validation.safetensors  test.safetensors     images uint8 [n, c, h, w], labels int64 [n], index int64 [n]
    about.json                                                      names, shape, counts, mean, standard deviation, digest

Images stay uint8 until a classifier or an attack asks for `Split.floats`: a quarter of the memory, and 0..255 is what the files held.
"""

import hashlib
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from basin import files
from basin.config.splits import TEST_SHARE, VALIDATION_SHARE, SplitSettings
from basin.data import stored
from basin.data.about import SPLITS, About, SplitName, unusable
from basin.errors import Mistake
from basin.randomness import generator
from basin.types import Images, ImageShape, Labels, Pixels

log = logging.getLogger(__name__)

Positions = Int64[Tensor, " _"]  # in a split; as many as are meant
SURROGATE = re.compile("[\ud800-\udfff]")  # of a file name that is not UTF-8; no text file holds one
FEW = 100  # attacked images: of fewer an accuracy is known to 20 points
STD_FLOOR = 1 / 255  # one grey level: dividing by it keeps a constant channel finite


@dataclass(frozen=True, eq=False)
class Split:
    """Images, as pixels or floats, with their labels; `index` is the position of each in the source's own order (None: they are in it)."""

    images: Pixels | Images
    labels: Labels
    index: Labels | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> ImageShape:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def take(self, index: Positions) -> "Split":
        """The images at `index`, in its order."""
        return Split(self.images[index], self.labels[index], self.places(index))

    def places(self, index: Positions) -> Positions:
        """Where the images at `index` are in the source's own order."""
        return index if self.index is None else self.index[index]

    def floats(self, index: Tensor | slice | None = None) -> Images:
        """Images as float32 in [0, 1], all of them or those at `index`."""
        return floats(self.images if index is None else self.images[index])


def floats(images: Pixels | Images) -> Images:
    """Pixels as float32 in [0, 1], where 255 is exactly 1; floats as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


@dataclass(frozen=True, eq=False)
class Source:
    """What a source kind read: `test` and `validation` are its own splits, or None where it has none; label i is `classes[i]`.

    Raises Mistake when the parts contradict each other; a kind that can name the file at fault does so before.
    """

    train: Split
    test: Split | None
    classes: tuple[str, ...]
    validation: Split | None = None

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise Mistake(f"data: a classifier needs at least two classes (got {list(self.classes)}). Check where the data is read from.")
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise Mistake(f"data: two classes have the same name (got '{twice}'). Rename one.")
        if unwritable := [name for name in self.classes if SURROGATE.search(name)]:
            raise Mistake(f"data: the name of a class is no text that UTF-8 can hold (got {ascii(unwritable[0])}). Rename it.")
        for name, split in (("training", self.train), ("validation", self.validation), ("test", self.test)):
            if split is not None:
                self._check(name, split)

    def _check(self, name: str, split: Split) -> None:
        if split.shape != self.train.shape:
            raise Mistake(
                f"data: {name} images have another shape than training images (got {list(split.shape)} and {list(self.train.shape)}, "
                "channels, height, width). Bring them to one shape."
            )
        if len(split.images) != len(split.labels) or not split.images.numel():
            raise Mistake(
                f"data: {name} images and labels do not match, or there are none (got {list(split.images.shape)} and "
                f"{len(split)} labels). Give one label an image."
            )
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= len(self.classes):
            raise Mistake(
                f"data: {name} labels must be in 0..{len(self.classes) - 1} (got {low if low < 0 else high}). "
                "Name every class, and count from 0."
            )


# Dividing ---------------------------------------------------------------------------------------------------------------------------------


def divide(source: Source, settings: SplitSettings, seed: int) -> dict[SplitName, Split]:
    """Disjoint, stratified train, validation and test splits; without limits they hold every image once.

    Each split is stored in a drawn order of which every beginning holds the classes in proportion, each of them once before any
    comes twice: an attack on "the first 300 images" is an attack on all classes. The test split depends on `seed` and the
    source alone, not on `validation`. Raises Mistake where a class is too small or a setting does not fit the source.
    """
    return {name: whole.take(rows) for name, (whole, rows) in placed(source, settings, seed).items()}


def placed(source: Source, settings: SplitSettings, seed: int) -> dict[SplitName, tuple[Split, Positions]]:
    """Of each split in which part of the source its images lie, and where there, in their order."""
    draw = generator(seed, "splits")
    parts = _parts(source, settings, draw)
    sizes = _sizes({name: len(index) for name, (_, index) in parts.items()}, settings, len(source.classes))
    return {name: (whole, in_proportion(whole.labels, index, draw)[: sizes[name]]) for name, (whole, index) in parts.items()}


def _parts(source: Source, settings: SplitSettings, draw: torch.Generator) -> dict[SplitName, tuple[Split, Positions]]:
    """Where each split's images lie: in which split of the source, and at which positions."""
    own: dict[SplitName, Split | None] = {"test": source.test, "validation": source.validation}
    asked: dict[SplitName, float | None] = {"test": settings.test, "validation": settings.validation}
    shares = {"test": TEST_SHARE, "validation": VALIDATION_SHARE}
    cut = {name: asked[name] or shares[name] for name, split in own.items() if split is None}
    _check_class_sizes(source, [name for name in SPLITS if name == "train" or name in cut])
    parts: dict[SplitName, tuple[Split, Positions]] = {}
    for name, split in own.items():
        if split is not None:
            _check_own(name, split, source.classes, asked[name])
            parts[name] = split, torch.arange(len(split))
    pieces = _cut(source.train.labels, tuple(cut.values()), draw)
    return parts | {name: (source.train, piece) for name, piece in zip([*cut, "train"], pieces, strict=True)}  # type: ignore[list-item]


def _check_own(name: SplitName, split: Split, classes: tuple[str, ...], asked: float | None) -> None:
    """A split that a source has of its own leaves nothing to hold out for it."""
    if asked is not None:
        raise Mistake(
            f"data.{name}: this data set has a {name} split of its own (got {asked}). "
            f"Set `{name}: null`{', and `test_limit` for fewer images' if name == 'test' else ''}."
        )
    if absent := [one for one, count in _class_sizes(split.labels, classes).items() if not count]:
        log.warning("data: the %s split has no image of %s", name, ", ".join(absent))


def _check_class_sizes(source: Source, needing: Sequence[str]) -> None:
    small = {name: count for name, count in _class_sizes(source.train.labels, source.classes).items() if count < len(needing)}
    if small:
        raise Mistake(*(_too_small(name, count, needing) for name, count in small.items()))


def _class_sizes(labels: Labels, classes: tuple[str, ...]) -> dict[str, int]:
    return dict(zip(classes, torch.bincount(labels, minlength=len(classes)).tolist(), strict=True))


def _too_small(name: str, count: int, needing: Sequence[str]) -> str:
    return (
        f"data: class '{name}' has too few images for {', '.join(needing)} to have one each (got {count}). "
        f"Give it {len(needing)} or more, or leave the class out."
    )


def _ranks(labels: Labels, draw: torch.Generator) -> Labels:
    """A drawn rank of each image within its class: a permutation of 0 .. (size of the class - 1)."""
    order = torch.randperm(len(labels), generator=draw)
    order = order[torch.argsort(labels[order], stable=True)]
    counts = torch.bincount(labels)
    first = counts.cumsum(0) - counts
    ranks = torch.empty_like(labels)
    ranks[order] = torch.arange(len(labels)) - first[labels[order]]
    return ranks


def _cut(labels: Labels, shares: tuple[float, ...], draw: torch.Generator) -> list[Positions]:
    """Positions of one part a share and, last, of the rest; each class gives every part one image first, then its share."""
    ranks, counts = _ranks(labels, draw), torch.bincount(labels)
    spare = (counts - len(shares) - 1).double()
    start, parts = torch.zeros_like(counts), []
    for share in shares:
        end = start + (share * spare).long() + 1
        parts.append(torch.nonzero((ranks >= start[labels]) & (ranks < end[labels])).flatten())
        start = end
    return [*parts, torch.nonzero(ranks >= start[labels]).flatten()]


def in_proportion(labels: Labels, index: Positions, draw: torch.Generator) -> Positions:
    """`index` in a drawn order of which every beginning holds the classes in proportion."""
    index = index[torch.randperm(len(index), generator=draw)]  # who comes first among equals
    chosen = labels[index]
    quantiles = _ranks(chosen, draw).double() / torch.bincount(chosen)[chosen]
    return index[torch.argsort(quantiles, stable=True)]


def _sizes(counts: dict[SplitName, int], settings: SplitSettings, classes: int) -> dict[SplitName, int]:
    """How many images of each split are kept under the limits."""
    for key, limit in (("train_limit", settings.train_limit), ("test_limit", settings.test_limit)):
        if limit is not None and limit < classes:
            raise Mistake(f"data.{key}: fewer images than the {classes} classes (got {limit}). Set it to {classes} or more, or null.")
    train = min(counts["train"], settings.train_limit or counts["train"])
    validation = max(classes, math.ceil(counts["validation"] * train / counts["train"]))
    return {"train": train, "validation": validation, "test": min(counts["test"], settings.test_limit or counts["test"])}


def described(name: str, source: Source, parts: dict[SplitName, tuple[Split, Positions]], asked: int) -> list[str]:
    """What was found, classes, shape, how it is divided (`placed`); the classes of the attacked images, and if these are few."""
    whole, rows = parts["test"]
    n = min(asked, len(rows))
    counts = _class_sizes(whole.labels[rows[:n]], source.classes)
    sizes = ", ".join(f"{len(parts[split][1])} {split}" for split in SPLITS)
    lines = [f"data {name}: {len(source.classes)} classes, images of shape {list(source.train.shape)}: {sizes}"]
    lines.append(f"attacked: {n} of {asked} asked for: {', '.join(f'{count} {one}' for one, count in counts.items())}")
    if n < FEW:
        lines.append(
            f"attacked: with {n} images the 95% interval of an accuracy is up to {200 / math.sqrt(n):.0f} points wide; more say more"
        )
    return lines


# Writing ----------------------------------------------------------------------------------------------------------------------------------


def prepare(source: Source, splits: SplitSettings, name: str, kind: str, seed: int, folder: Path) -> About:
    """Divide `source` and write the three splits and `about.json` into `folder`, each whole or not at all.

    The same source, settings and seed give the same bytes.
    """
    parts = placed(source, splits, seed)
    mean, std = _moments(stored.pieces(parts["train"][0].images, parts["train"][1]))
    about = About(
        name=name,
        kind=kind,
        classes=source.classes,
        shape=source.train.shape,
        counts={split: len(parts[split][1]) for split in SPLITS},
        mean=mean,
        std=std,
        digest=_digest(parts, source.classes),
    )
    for split in SPLITS:
        whole, rows = parts[split]
        files.write(folder / f"{split}.safetensors", stored.content(whole.images, rows, whole.labels[rows], whole.places(rows)))
    files.write(folder / "about.json", about.model_dump_json(indent=2).encode() + b"\n")
    return about


def _moments(pieces: Iterator[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1], from integer sums: exact before the last rounding, on any machine."""
    counts = sum(torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in piece.unbind(1)]) for piece in pieces)
    means, stds = [], []
    levels = torch.arange(256)
    for histogram in counts:  # type: ignore[union-attr]
        n, total, squares = (int((histogram * levels**power).sum()) for power in (0, 1, 2))
        means.append(total / n / 255)
        stds.append(max(math.sqrt(n * squares - total**2) / n / 255, STD_FLOOR))
    return tuple(means), tuple(stds)


def _digest(parts: dict[SplitName, tuple[Split, Positions]], classes: tuple[str, ...]) -> str:
    """SHA-256 over the class names and, split by split, each tensor's name, shape and bytes."""
    sha256 = hashlib.sha256(repr(classes).encode())
    for name in SPLITS:
        split, rows = parts[name]
        sha256.update(f"{name}/images{[len(rows), *split.shape]}".encode())
        for piece in stored.pieces(split.images, rows):
            sha256.update(piece.contiguous().numpy().data)
        for key, tensor in (("labels", split.labels[rows]), ("index", split.places(rows))):
            sha256.update(f"{name}/{key}{list(tensor.shape)}".encode())
            sha256.update(tensor.numpy().data)
    return sha256.hexdigest()


# Reading ----------------------------------------------------------------------------------------------------------------------------------


def load_split(folder: Path, name: SplitName) -> Split:
    """One prepared split. Raises Mistake when the file is absent or damaged."""
    path = folder / f"{name}.safetensors"
    try:
        tensors = load_file(path)
        images, labels, index = tensors["images"], tensors["labels"], tensors["index"]
    except (OSError, SafetensorError, KeyError) as error:
        raise unusable(path, error) from error
    kinds = (images.dtype, labels.dtype, index.dtype)
    if kinds != (torch.uint8, torch.int64, torch.int64) or images.ndim != 4 or not images.shape[:1] == labels.shape == index.shape:
        raise unusable(path, f"images {images.dtype} {list(images.shape)}, labels {labels.dtype} {list(labels.shape)}")
    return Split(images, labels, index)
