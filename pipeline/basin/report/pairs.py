"""Two models on the same images: what each holds that the other does not.

Of n images let k be held by the one alone and l by the other alone (of random models: the sums of what one holds more often than the
other). The difference is (k - l) / n. Its interval is that of Clopper and Pearson for k of k + l, whose lower end is above zero exactly
where McNemar's exact test rejects (1947; Psychometrika 12:153); shares, which vary less than whole images, make it wider than it need be.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from basin.report.table import ByModel, held


@dataclass(frozen=True)
class Difference:
    """Of robust accuracy, on the same n images: k held by the first alone, l by the second alone."""

    k: float
    l: float  # noqa: E741
    n: int
    confidence: float = 0.95

    @property
    def value(self) -> float:
        return (self.k - self.l) / self.n

    @cached_property
    def interval(self) -> tuple[float, float]:
        from scipy.special import betaincinv

        k, m, tail = self.k, self.k + self.l, (1 - self.confidence) / 2
        low = float(betaincinv(k, m - k + 1, tail)) if k > 0 else 0.0
        high = float(betaincinv(k + 1, m - k, 1 - tail)) if k < m else 1.0
        return (2 * low - 1) * m / self.n + 0.0, (2 * high - 1) * m / self.n + 0.0

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}] on {self.n} images"


def paired(a: Mapping[int, float], b: Mapping[int, float], confidence: float = 0.95) -> Difference | None:
    """How much more `a` holds than `b` of the images that both were attacked on; None where there are none."""
    if not (both := sorted(a.keys() & b.keys())):
        return None
    return between(np.array([a[image] for image in both], float), np.array([b[image] for image in both], float), confidence)


def differences(everything: ByModel) -> dict[tuple[str, str], Difference]:
    """The paired difference of every two models of a run, in the run's order."""
    shares = {model: held(suites) for model, suites in everything.items()}
    return {(a, b): between(shares[a], shares[b]) for a, b in combinations(shares, 2)}


def between(a: np.ndarray, b: np.ndarray, confidence: float = 0.95) -> Difference:
    """Of the shares of draws in which two models hold the same images, each [n]."""
    return Difference(float((a - b).clip(0).sum()), float((b - a).clip(0).sum()), len(a), confidence)
