"""docs/recipes.md, block by block: what it shows is written into a file and judged, with models of torchvision, timm and transformers."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import ROOT, blocks, commands
from safetensors.torch import save_model
from torch import nn

from basin.cli import app

TEXT = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
BLOCKS = {re.search(r"def (\w+)", block)[1]: block for block in blocks(TEXT, "python")}  # type: ignore[index]
CALLS = {words[2].partition(":")[2]: words[1:] for words in commands(TEXT, ("basin",)) if len(words) > 4}


def torchvision_weights(folder: Path) -> None:
    from torchvision.models import resnet18

    save_model(resnet18(num_classes=3), str(folder / "weights.safetensors"))


def timm_weights(folder: Path) -> None:
    timm = pytest.importorskip("timm")
    save_model(timm.create_model("resnet18", num_classes=3), str(folder / "weights.safetensors"))


def hugging_face_weights(folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="no dependency of Basin; docs/recipes.md says with which it was tried")
    small = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    config = transformers.ResNetConfig(**small, num_labels=3)
    transformers.ResNetForImageClassification(config).save_pretrained(folder / "my/model")


MADE: dict[str, Any] = {
    "from_torchvision": (torchvision_weights, None),
    "from_timm": (timm_weights, None),
    "from_hugging_face": (hugging_face_weights, "logits taken out of"),
}


def test_every_recipe_is_tried():
    assert set(BLOCKS) == {*MADE, "normalised"} and set(CALLS) == set(MADE)


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_a_recipe_leads_to_an_answer(name, tmp_path, monkeypatch, capsys):
    weights, fact = MADE[name]
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    weights(tmp_path)
    (tmp_path / "net.py").write_text(BLOCKS[name], encoding="utf-8")
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "photos.npz", images=images, labels=np.arange(6) % 3)
    app.app([*CALLS[name], "--suite", "quick"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "clean, n = 6" in said and (fact or "") in said and "names a mean" not in said


def test_a_normalisation_as_a_layer_is_what_normalise_does():
    names: dict[str, Any] = {}
    exec(BLOCKS["normalised"], names)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    inner = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    wanted = inner((x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])
    torch.testing.assert_close(names["normalised"](inner, mean, std)(x), wanted)
