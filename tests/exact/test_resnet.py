"""The residual nets, held to the sizes that are known of them."""

import pytest
import torch
from small import classifier

from basin.methods.backbones.resnet import Backbone, Params


def size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("depth, millions", [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_sizes_of_the_cifar_family_are_those_of_the_paper(depth, millions):
    """Table 6 of He et al. 2016, to its two digits, once the two projections that option A does without are taken away."""
    model = Backbone(Params(depth=depth), (3, 32, 32))
    projections = sum(size(block.shortcut) for block in model.blocks)
    assert (size(model) - projections + 65 * 10) / 1e6 == pytest.approx(millions, rel=0.02)


def test_the_size_of_the_18_layer_net_is_known():
    """11,173,962 parameters with a linear classifier of ten classes on three channels."""
    model = Backbone(Params(depth=18), (3, 32, 32))
    assert size(model) + 513 * 10 == 11_173_962 and model.width == 512


def test_the_18_layer_net_halves_three_times_and_has_17_convolutions_beside_the_projections():
    model = Backbone(Params(depth=18, width=4), (3, 32, 32)).eval()
    x, sides = model.stem(torch.zeros(1, 3, 32, 32)), []
    for block in model.blocks:
        sides.append(tuple((x := block(x)).shape[1:3]))
    assert sides == [(4, 32)] * 2 + [(8, 16)] * 2 + [(16, 8)] * 2 + [(32, 4)] * 2
    shortcuts = {id(m) for block in model.blocks for m in block.shortcut.modules()}
    assert sum(isinstance(m, torch.nn.Conv2d) and id(m) not in shortcuts for m in model.modules()) == 17


def test_width_is_the_familys_own_unless_given():
    assert Params().width is None
    widths = [classifier({"kind": "resnet", **asked}).backbone.width for asked in ({}, {"width": 8}, {"depth": 18, "width": 2})]
    assert widths == [64, 32, 16]
