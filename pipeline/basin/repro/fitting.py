"""Whether the models of params.yaml can be built for the images and on each other: hours before their stages would say so."""

from collections.abc import Sequence
from typing import Any

from basin.config.names import STAGES
from basin.config.params import Config
from basin.errors import THEIRS, Mistake, said


def check(config: Config, shape: Sequence[int], classes: Sequence[str]) -> None:
    """Raise Mistake with what is wrong with any of them; of what is built on one that is wrong nothing is said."""
    wrong: dict[str, str] = {}
    for model in (f"{stage}/{name}" for stage in STAGES for name in getattr(config, stage)):
        try:
            _build(_tree(config, model), shape, classes)
        except THEIRS as error:
            if not wrong.keys() & _below(config, model):
                what = str(error) if isinstance(error, Mistake) else f"cannot be built (got {said(error)}). Change it."
                wrong[model] = f"params.yaml: {model.replace('/', '.', 1)}: {what}"
    if wrong:
        raise Mistake(*wrong.values())


def _tree(config: Config, model: str) -> dict[str, Any]:
    """The classifier's parts with all settings, as its recipe will have them, but for the normalisation, which is the data's."""
    asked = config.entry(model)
    if hasattr(asked, "from_"):
        tree = _tree(config, asked.from_) | ({"head": asked.head.tree()} if hasattr(asked, "head") else {})
    else:
        kind = asked.backbone.module
        tree = {
            "backbone": asked.backbone.tree(),
            "head": kind.head(asked.backbone.params) if hasattr(kind, "head") else {"kind": "linear"},
        }
    return tree | ({"purifier": asked.purifier.tree()} if asked.purifier else {})


def _below(config: Config, model: str) -> set[str]:
    """What it is built from, all the way."""
    above = getattr(config.entry(model), "from_", None)
    return {above, *_below(config, above)} if above else set()


def _build(tree: dict[str, Any], shape: Sequence[int], classes: Sequence[str]) -> None:
    import torch

    from basin.models import artifact

    plain = {"mean": [0.5] * shape[0], "std": [0.5] * shape[0]}
    with torch.device("meta"):  # shapes alone: nothing is allocated
        artifact.build({"shape": list(shape), "classes": list(classes), "classifier": tree | {"normalise": plain}})
