"""Handwritten digits inside scikit-learn: real images, no download, seconds on a CPU.

1,797 grey images of 8x8 in ten classes; no test split of its own. E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, 1998, doi:10.24432/C50P49: scikit-learn ships its test half.
"""

import numpy as np
import torch

from basin.config.settings import Settings
from basin.data.splits import Source, Split


class Params(Settings):
    """Digits have no knobs."""


def read(params: Params) -> Source:
    """All images, [1797, 1, 8, 8]; the 17 levels 0..16 are spread over 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return Source(Split(torch.from_numpy(images), labels), None, tuple(str(name) for name in digits.target_names))
