"""What has a solver elsewhere, beside that: WNLL's system by SciPy's sparse solve, total variation by scikit-image's Chambolle."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from basin.config.kinds import choose
from basin.models.interpolation import alone, graph, harmonic, neighbours
from basin.randomness import generator
from benchmarks import side_by_side

TESTS = Path(__file__).parents[1] / "tests"
sys.path += [str(TESTS), str(TESTS / "exact")]  # the solve term by term lives with the test that holds us to it
UNLABELLED, TEMPLATE, WIDTH, CLASSES = 128, 1000, 64, 10
PIXELS, WEIGHT = (1, 28, 28), 0.05


def measure(rounds: int, images: int) -> Iterator[dict[str, Any]]:
    """On the CPU. `ratio`: our time over theirs."""
    import test_wnll

    draws = generator(0, "closed")
    x, t = torch.randn(UNLABELLED, WIDTH, generator=draws), torch.randn(TEMPLATE, WIDTH, generator=draws)
    g = torch.nn.functional.one_hot(torch.arange(TEMPLATE) % CLASSES, CLASSES).float()
    k, rank, within = test_wnll.K, test_wnll.RANK, neighbours(t, test_wnll.K)
    ways = {
        f"WNLL, {UNLABELLED} images in one graph, over a k-d tree and SciPy's sparse solve": lambda: harmonic(
            graph(torch.cat([t, x]), k, rank), g
        ),
        f"WNLL, {UNLABELLED} images each alone, over the same for one graph": lambda: alone(x, t, g, rank, within),
    }
    for name, way in ways.items():
        yield {"what": name} | side_by_side(way, lambda: test_wnll.reference(x.numpy(), t.numpy(), g.numpy()), rounds)
    if importlib.util.find_spec("skimage"):
        from skimage.restoration import denoise_tv_chambolle

        noisy = torch.rand(images, *PIXELS, generator=draws)
        tree = choose("purifiers", {"kind": "tv", "weight": WEIGHT})
        ours, theirs = tree.module.Purifier(tree.params), noisy[:, 0].numpy()
        row = side_by_side(lambda: ours(noisy), lambda: [denoise_tv_chambolle(one, WEIGHT) for one in theirs], rounds)
        yield {"what": f"TV, {images} images of 28x28, over scikit-image's Chambolle"} | row
