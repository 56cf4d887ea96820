"""Class by class: what of each is read and kept, and which class becomes which under attack."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from basin.report.pictures import class_name, of_strongest
from basin.report.table import ByModel, held


@dataclass(frozen=True)
class Class:
    name: str
    n: int
    shares: list[tuple[float, float]]  # of each model: clean, worst case


@dataclass(frozen=True)
class ByClass:
    classes: list[Class]
    means: list[tuple[float, float]]  # over the classes, of each model
    becomes: list[tuple[str, list[dict[str, Any]]]]  # model, rows of the figure `confusion`
    moves: list[tuple[str, list[str]]]  # model, its commonest ways from class to class in words


def by_class(everything: ByModel) -> ByClass:
    first = next(iter(next(iter(everything.values())).values()))
    found = [(next(iter(outcomes.values())), held(outcomes)) for outcomes in everything.values()]
    classes = [
        Class(class_name(first, label), int(here.sum()), [(float((one.clean == one.label)[here].mean()), float(worst[here].mean()))
                                                          for one, worst in found])
        for label in np.unique(first.label) if (here := first.label == label).any()
    ]  # fmt: skip
    means = [(float(np.mean(clean)), float(np.mean(worst))) for clean, worst in (zip(*of) for of in zip(*(one.shares for one in classes)))]
    becomes = [(model, confusion(outcomes)) for model, outcomes in everything.items()]
    return ByClass(classes, means, becomes, [(model, _moves(rows)) for model, rows in becomes])


def confusion(outcomes: Any) -> list[dict[str, Any]]:
    """How many images of each class are read as each class under attack, where any are; `share`: of the class."""
    first = next(iter(outcomes.values()))
    pairs, counts = np.unique(np.c_[first.label, of_strongest(outcomes, "adversarial")], axis=0, return_counts=True)
    sizes = dict(zip(*np.unique(first.label, return_counts=True)))
    return [
        {"label": class_name(first, label), "read": class_name(first, read), "at": int(label), "to": int(read), "images": int(count),
         "share": round(float(count / sizes[label]), 4), "kept": bool(label == read)}
        for (label, read), count in zip(pairs, counts)
    ]  # fmt: skip


def _moves(rows: list[dict[str, Any]], most: int = 3) -> list[str]:
    ranked = sorted((row for row in rows if not row["kept"]), key=lambda row: -row["images"])
    return [f"{row['label']} → {row['read']} ({row['images']})" for row in ranked[:most]]
