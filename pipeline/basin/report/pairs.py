"""Two models on the same images: what each holds that the other does not.

Of n images let k be held by the one alone and l by the other alone (of random models: the sums of what one holds more often than the
other). The difference is (k - l) / n. Its interval is Wald's with half an image added to each of the four cells (Agresti & Min 2005;
Statistics in Medicine 24:729); shares, which vary less than whole images, make it wider than it need be. Whether it is more than chance
McNemar's exact test says (1947; Psychometrika 12:153): k of k + l, were each as likely.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

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

    @property
    def interval(self) -> tuple[float, float]:
        n, more, unlike = self.n + 2, self.k - self.l, self.k + self.l + 1
        half = NormalDist().inv_cdf((1 + self.confidence) / 2) * (unlike - more**2 / n) ** 0.5
        return max(-1.0, (more - half) / n), min(1.0, (more + half) / n)

    @property
    def beyond_chance(self) -> bool:
        """Whether P(X >= max(k, l)) of X ~ B(k + l, 1/2) is at most (1 - confidence) / 2."""
        from scipy.special import betainc

        return self.k != self.l and bool(betainc(max(self.k, self.l), min(self.k, self.l) + 1, 0.5) <= (1 - self.confidence) / 2)

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
