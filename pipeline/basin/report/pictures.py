"""Adversarial examples as pictures: the same few images for every model."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from basin.report.outcomes import EXCHANGE, Outcome
from basin.report.table import ByModel

LARGEST = 64  # pixels a side; larger images are averaged down, so that the page stays light


@dataclass(frozen=True)
class Picture:
    source: str  # PNG as a data URI
    alt: str


@dataclass(frozen=True)
class Example:
    adversarial: Picture
    perturbation: Picture
    amplified: float  # factor between the perturbation and its picture, 0 where nothing was perturbed
    read: str
    fate: str  # broken | robust | wrong
    attack: str
    distance: float


@dataclass(frozen=True)
class Gallery:
    clean: list[tuple[Picture, str, int]]  # picture, class, index in the test split
    rows: list[tuple[str, list[Example]]]
    side: int  # pixels


def gallery(everything: ByModel, count: int = 5) -> Gallery:
    """The same `count` images for every model, see `choose`."""
    chosen = choose(everything, count)
    first = next(iter(next(iter(everything.values())).values()))
    clean = [(first.points(i)[0], class_name(first, first.label[i]), int(first.image[i])) for i in chosen]
    return Gallery(
        [(Picture(png(shrunk(image)), f"image {index}, a {name}"), name, index) for image, name, index in clean],
        [(model, [example(model, outcomes, i) for i in chosen]) for model, outcomes in everything.items()],
        max(shrunk(clean[0][0]).shape[1:]),
    )


def choose(everything: ByModel, count: int) -> list[int]:
    """Positions of images that most models read rightly, classes differing where possible.

    The larger half are those that most models lose; the rest tell the models apart, lost by about half of them.
    """
    models = [list(outcomes.values()) for outcomes in everything.values()]
    label = models[0][0].label
    wrong = np.sum([suites[0].clean != suites[0].label for suites in models], 0)
    broken = np.sum([np.minimum.reduce([one.robust for one in suites]) < 0.5 for suites in models], 0)
    lost = np.lexsort((-broken, wrong))  # lexsort is stable and sorts by its last key first
    telling = np.lexsort((np.abs(2 * broken - len(models) - 1), wrong))
    chosen: list[int] = []
    for ranked, until in ((lost, count - count // 2), (telling, count)):
        left = [i for i in ranked.tolist() if i not in chosen]
        while left and len(chosen) < until:
            chosen.append(next((i for i in left if label[i] not in label[chosen]), left[0]))
            left.remove(chosen[-1])
    return chosen


def strongest(outcomes: Mapping[str, Outcome]) -> np.ndarray:
    """int [n]: of each image, which suite's stored point counts: the last that broke it, else the last; the points of other models only
    where nothing else broke it."""
    order = sorted(range(len(outcomes)), key=lambda i: list(outcomes)[i] != EXCHANGE)
    robust = np.array([one.robust for one in outcomes.values()])[order]
    return np.array(order)[len(order) - 1 - np.argmin(robust[::-1], 0)]


def of_strongest(outcomes: Mapping[str, Outcome], column: str) -> np.ndarray:
    """A column of the outcomes, each image's from its strongest suite."""
    chosen = strongest(outcomes)
    return np.array([getattr(one, column) for one in outcomes.values()])[chosen, np.arange(len(chosen))]


def example(model: str, outcomes: Mapping[str, Outcome], position: int) -> Example:
    """The stored point of the strongest suite."""
    one = list(outcomes.values())[strongest(outcomes)[position]]
    clean, adversarial = one.points(position)
    delta = adversarial - clean
    largest = float(np.abs(delta).max())
    fate = "robust" if one.robust[position] >= 0.5 else "wrong" if one.attack[position] == "clean" else "broken"
    read = class_name(one, one.adversarial[position])
    factor = 0.5 / largest if largest else 0.0
    which = f"image {one.image[position]} attacked on {model}"
    return Example(
        Picture(png(shrunk(adversarial)), f"{which}, read as {read}"),
        Picture(png(shrunk(0.5 + factor * delta)), f"its perturbation, {factor:.1f} times amplified"),
        factor, read, fate, str(one.by[position]), float(one.distance[position]),
    )  # fmt: skip


def class_name(outcome: Outcome, index: int | np.integer) -> str:
    classes = outcome.summary.classes
    return classes[index] if classes and 0 <= index < len(classes) else str(index)


def shrunk(image: np.ndarray) -> np.ndarray:
    """[c, h, w] with no side above LARGEST, by averaging whole blocks."""
    return averaged(image, -(-max(image.shape[1:]) // LARGEST))


def averaged(images: np.ndarray, block: int) -> np.ndarray:
    """float [..., h, w] with the mean of each whole block of pixels in its place."""
    if block == 1:
        return images
    height, width = (side // block for side in images.shape[-2:])
    whole = images[..., : height * block, : width * block]
    return whole.reshape(*images.shape[:-2], height, block, width, block).mean((-3, -1))


def png(image: np.ndarray) -> str:
    """float [c, h, w] in [0, 1] as a data URI; one channel is grey, three are colours, others are averaged to grey."""
    from PIL import Image

    pixels = np.round(255 * np.nan_to_num(image).clip(0, 1)).astype(np.uint8)
    picture = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels.mean(0).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
