"""Accuracy class by class: figures that the sizes of the classes do not sway, and signs that a model does not read what it is shown.

An accuracy is a mean over images, so where one class has most of them a model need not know the others. `labels` and `answers` are
int [n], the class of each image and the one that the model gives it; `shares` are float [n], of draws in which it is read rightly.
"""

import numpy as np

from basin.evaluation.interval import Z95, wilson

BALANCE = ("largest_class", "balanced_clean", "balanced_worst_case")

UNEVEN = 0.1  # of an accuracy: what the sizes of the classes can make of it, beyond what drawing from equal classes would
HARDLY = 0.1  # of the clean accuracy: what at most is read of a class that is hardly answered
WEAKEST = 0.5  # of the clean accuracy: what a model reads of every class that it knows: 0.4 of its weakest, if 0.8 of all
CHANCE = 0.05  # probability with which the classes of such a model look unanswered, because few of their images were judged
SURE = 1e9  # what is measured of a fault beyond doubt
IGNORED = 0.05  # of the classes: among many there is always a weak one, which says nothing of the accuracy over all
ELSEWHERE = 0.05  # of the answers: classes that the data do not have


def is_uneven(labels: np.ndarray) -> bool:
    """Whether the classes differ in size, so that accuracy and mean over the classes can differ by more than UNEVEN and chance.

    The most by which they can is half the sum of |share - 1/classes|. Of n images drawn from equal classes its mean is close to
    ((classes - 1) / 2 pi n)^(1/2): 0.07 of 300 images of ten.
    """
    share = np.unique(labels, return_counts=True)[1] / len(labels)
    by_chance = np.sqrt((len(share) - 1) / (2 * np.pi * len(labels)))
    return bool(np.abs(share - 1 / len(share)).sum() / 2 > UNEVEN + by_chance)


def balanced(labels: np.ndarray, shares: np.ndarray) -> float:
    """The mean over the classes of each one's accuracy, so that a small class counts as much as a large one."""
    return float(np.mean([here for _, here in by_class(labels, shares).values()]))


def balance(labels: np.ndarray, clean: np.ndarray, robust: np.ndarray) -> dict[str, float]:
    """The share of the largest class, which a constant answer scores, and the means over the classes."""
    largest = np.unique(labels, return_counts=True)[1].max() / len(labels)
    return dict(zip(BALANCE, (float(largest), balanced(labels, clean), balanced(labels, robust)), strict=True))


def by_class(labels: np.ndarray, *shares: np.ndarray) -> dict[str, list[float]]:
    """class -> how many images it has, and the mean over them of each of the shares."""
    where = {str(label): labels == label for label in np.unique(labels)}
    return {label: [int(here.sum()), *(float(one[here].mean(dtype=float)) for one in shares)] for label, here in where.items()}


def ignorance(labels: np.ndarray, shares: np.ndarray) -> float:
    """CHANCE over the probability that a model which knows every class leaves as many images in classes that are hardly answered.

    Above 1 such classes are too many to be chance; 0 where they are next to none of all classes.

    A class of n images that it knows looks hardly answered with the binomial probability of HARDLY n a or fewer, each with probability
    WEAKEST a, a the clean accuracy; the probability that classes of as many images as were found all look so is then exact.
    """
    found = np.array(list(by_class(labels, shares).values()))
    n, clean = found[:, 0].astype(int), shares.mean()
    hardly = found[:, 1] <= HARDLY * clean
    if hardly.mean() < IGNORED:
        return 0.0
    from scipy.special import bdtr

    likely = bdtr(np.floor(HARDLY * clean * n), n, WEAKEST * clean)
    return CHANCE / max(_at_least(int(n[hardly].sum()), n, likely), CHANCE / SURE)


def _at_least(images: int, sizes: np.ndarray, likely: np.ndarray) -> float:
    """The probability that classes of as many images are met, if each is met by itself with the probability that is `likely` for it."""
    met = np.eye(1, sizes.sum() + 1)[0]  # met[i]: the probability of i images so far
    for size, p in zip(sizes, likely, strict=True):
        met[size:], met[:size] = (1 - p) * met[size:] + p * met[:-size], (1 - p) * met[:size]
    return float(met[images:].sum())


def guessing(labels: np.ndarray, answers: np.ndarray) -> float:
    """How far answers would agree with shuffled labels by chance, over how far they agree with these; above 1 they may be guesses.

    The inverse of Cohen's kappa over its standard error where nothing is read (Fleiss, Cohen and Everitt 1969, Psychological Bulletin
    72:323). Kappa is zero for whatever does not look at the image, however uneven the classes; an accuracy below the largest class need
    not be.
    """
    classes = int(np.append(labels, answers).max()) + 1
    p, q = (np.bincount(one, minlength=classes) / len(labels) for one in (labels, answers))
    agreed, expected = (labels == answers).mean(), p @ q
    error = np.sqrt(np.maximum(0.0, expected + expected**2 - (p * q) @ (p + q)) / len(labels))
    if p.max() == 1 or agreed == 1:
        return 0.0  # one class, or no mistake: nothing to tell guesses by
    return float(Z95 * error / (agreed - expected)) if agreed - expected > 1 / SURE else SURE


def elsewhere(answers: np.ndarray, classes: int) -> float:
    """The share of answers that are none of the data's `classes`: the lower end of its interval."""
    return wilson(float((answers >= classes).sum()), len(answers))[0]
