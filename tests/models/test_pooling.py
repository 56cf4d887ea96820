"""Means over parts: those of torch's adaptive pooling, in both directions."""

import pytest
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from basin.models.borrowed import quieten
from basin.models.pooling import means
from basin.randomness import generator


@pytest.mark.parametrize("side", [(7, 7), (6, 5), (3, 1), (9, 14)])
def test_the_means_and_their_gradient_are_those_of_adaptive_pooling(side: tuple[int, int]):
    x = torch.randn(2, 3, 9, 14, generator=generator(0), dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, *side, generator=generator(1), dtype=torch.float64)
    ours, torchs = means(x, side), adaptive_avg_pool2d(x, side)
    torch.testing.assert_close(ours, torchs)
    (own,), (wanted,) = (torch.autograd.grad((one * weights).sum(), x) for one in (ours, torchs))
    torch.testing.assert_close(own, wanted)


def test_a_net_of_another_library_pools_as_it_did():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(7), nn.Sequential(nn.AdaptiveAvgPool2d((2, 3))), nn.AdaptiveAvgPool2d(1))
    x = torch.rand(2, 3, 20, 20, generator=generator(0))
    before = net(x)
    quieten(net)
    torch.testing.assert_close(net(x), before)
    assert [type(module).__name__ for module in net.modules() if "Avg" in type(module).__name__ or "Means" in type(module).__name__] == [
        "Means", "Means", "AdaptiveAvgPool2d",
    ]  # fmt: skip
