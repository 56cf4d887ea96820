"""`basin check` builds every model of params.yaml, shapes alone."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from basin.config import params
from basin.errors import Mistake
from basin.repro import fitting

ROOT = Path(__file__).parents[2]
CLASSES = tuple("0123456789")


@pytest.mark.parametrize("name", ["digits", "stable_digits"])
def test_ready_made_runs_can_be_built(name):
    fitting.check(params.load(ROOT / f"params/{name}.yaml"), (1, 8, 8), CLASSES)


def test_each_model_that_cannot_be_built_is_named_and_none_that_is_built_on_one(tmp_path):
    tree = YAML(typ="safe").load(ROOT / "params/digits.yaml")
    tree["head"]["sodef_natural"]["head"]["width"] = 6400
    tree["adversarial"]["pgd"]["purifier"] = {"kind": "tv"}
    tree["backbone"]["deep"] = tree["backbone"]["natural"] | {"backbone": {"kind": "convnet", "channels": [4] * 8, "hidden": 8}}
    tree["backbone"]["large"] = tree["backbone"]["natural"] | {"backbone": {"kind": "resnet", "depth": 20, "width": 2**62}}
    tree["head"]["on_deep"] = tree["head"]["sodef_pgd"] | {"from": "backbone/deep"}
    YAML().dump(tree, tmp_path / "params.yaml")
    with pytest.raises(Mistake) as mistake:
        fitting.check(params.load(tmp_path / "params.yaml"), (1, 8, 8), CLASSES)
    assert [message.partition(" (got")[0] for message in mistake.value.messages] == [
        "params.yaml: backbone.deep: backbone.channels: 8 halvings leave nothing of the image",
        "params.yaml: backbone.large: cannot be built",
        "params.yaml: head.sodef_natural: head.width: does not fit",
    ]
