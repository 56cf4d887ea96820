"""What fools one model of a run, tried on every other: transfer among all of them, when each has been attacked by itself.

An attack that broke a model left points behind, and where it did not, those of highest loss. Another model that shares data, architecture
or backbone often falls to them, whatever its own gradient hides (Papernot et al. 2016, arXiv 1605.07277). It costs a pass a point.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file

from basin.evaluation.cascade import Evaluation
from basin.evaluation.outcomes import Outcomes
from basin.types import Images, Labels

TAKEN = 0.01  # of all images, by points of other models, after all attacks on the model itself had failed on them


def points(folder: Path, model: str, models: Sequence[str], suites: Sequence[str]) -> dict[str, Images]:
    """ "STAGE/NAME, SUITE" -> that suite's stored points [n, c, h, w], the model's own first."""
    order = [model, *(other for other in models if other != model)]
    return {f"{one}, {suite}": load_file(folder / one / suite / "adversarial.safetensors")["images"] for one in order for suite in suites}


def digest(points: Mapping[str, Images]) -> str:
    """What the points are, for the name of a checkpoint."""
    found = hashlib.sha256()
    for name, images in points.items():
        found.update(name.encode() + images.numpy().tobytes())
    return found.hexdigest()


def exchange(evaluation: Evaluation, images: Images, labels: Labels, points: Mapping[str, Images]) -> Outcomes:
    """The worst of the points for each image; `attack` is where the first that broke it comes from."""
    return evaluation.run(labels.new_tensor(range(len(labels))), images, labels, {}, stored=points)


def flags(outcomes: Outcomes, own: float) -> list[str]:
    """Raised where the robust accuracy under the model's `own` suites is above what the other models' points leave."""
    return ["transfer-beats-white-box"] if own - outcomes.robust > TAKEN else []
