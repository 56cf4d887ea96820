"""What contracts by construction does so for any weights, and what bounds a layer is above what the layer does."""

import pytest
import torch
from torch import Tensor, nn

from basin.errors import Mistake
from basin.evaluation import certificate, smoothing
from basin.evaluation.outcomes import Outcomes
from basin.methods.backbones import convnet, sll
from basin.methods.heads import contracting, linear
from basin.models.classifier import Classifier, Normalise
from basin.models.lipschitz import constant, given, lipschitz
from basin.randomness import construct, generator
from basin.threat.ball import ThreatModel

SCALES = [0.1, 1.0, 10.0]  # of the weights


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "contraction"), dtype=torch.float64)


def drawn(module: nn.Module, scale: float) -> nn.Module:
    """The module in float64, with all its weights of that scale."""
    module = module.double().requires_grad_(False)
    for seed, weight in enumerate(module.parameters()):
        weight.copy_(draws(*weight.shape, seed=seed) * scale)
    return module


def growth(function: nn.Module, x: Tensor, step: float) -> float:
    """The largest ratio of a distance after to the distance before."""
    y = x + draws(*x.shape, seed=9) * step
    return ((function(y) - function(x)).flatten(1).norm(dim=1) / (y - x).flatten(1).norm(dim=1)).max().item()


def head(**keys: object) -> contracting.Head:
    with construct(0, "head"):
        return contracting.Head(contracting.Params.model_validate({"width": 8, "hidden": 12} | keys), 8, 3)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("keys", [{}, {"layers": 3, "steps": 12}, {"decay": 0.5, "T": 2.0, "steps": 3}])
def test_trajectories_never_part_further_than_the_bound(scale, keys):
    flow = drawn(head(**keys).flow, scale)
    assert flow.lipschitz() == pytest.approx(1.0 if "decay" not in keys else (1 - 2 / 3 * 0.5) ** 3)
    for step in (1e-6, 1e-2, 10.0):
        assert growth(flow, draws(50, 8), step) <= flow.lipschitz() * (1 + 1e-6)


@pytest.mark.filterwarnings("error")
def test_drifts_take_turns_by_the_time_also_of_a_solver_that_differentiates_it():
    drifts = (flow := head(layers=2, T=2.0, steps=4).flow).drift.drifts
    z = draws(5, 8).float()
    for t, turn in ((0.0, 0), (0.9, 0), (1.0, 1), (2.0, 1)):
        torch.testing.assert_close(flow.drift(torch.tensor(t, requires_grad=True), z), drifts[turn](z))


@pytest.mark.parametrize("scale", SCALES)
def test_the_logarithmic_norm_of_the_drift_is_at_most_minus_the_decay(scale):
    flow = drawn(head(decay=0.5, T=2.0, steps=3).flow, scale)
    J = flow.jacobian(draws(20, 8), 0.0)
    torch.testing.assert_close(J, J.mT)
    eigenvalues = torch.linalg.eigvalsh(J)
    assert eigenvalues.max() <= -0.5 + 1e-9 and eigenvalues.min() >= -2.5 - 1e-9 and eigenvalues.min() < -0.6


def test_a_step_that_would_not_contract_is_refused():
    with pytest.raises(Mistake, match=r"head.steps: are too few to contract \(got 2\)"):
        head(T=5.0, steps=2)


@pytest.mark.parametrize("scale", SCALES)
def test_the_net_of_lipschitz_layers_brings_no_two_images_further_apart(scale):
    net = drawn(sll.Backbone(sll.Params(channels=[4, 16], blocks=2, hidden=6), (1, 8, 8)), scale)
    for step in (1e-6, 1e-2, 1.0):
        assert growth(net, draws(20, 1, 8, 8), step) <= 1 + 1e-6


def matrix(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """A linear layer without bias, written down for images of that shape."""
    size = torch.Size(shape).numel()
    return layer(torch.eye(size, dtype=torch.float64).view(size, *shape)).flatten(1).T


@pytest.mark.parametrize("settings", [{}, {"padding": 1}, {"stride": 2, "padding": 1}, {"padding": 1, "padding_mode": "circular"}])
def test_the_bound_of_a_convolution_is_above_its_norm_and_not_far(settings):
    layer = drawn(nn.Conv2d(2, 3, 3, bias=False, **settings), 1.0)
    norm = torch.linalg.matrix_norm(matrix(layer, (2, 8, 8)), 2).item()
    assert norm <= constant(layer) <= 3 * norm


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(2, 2, 3, groups=2), nn.Conv2d(1, 1, 3, padding_mode="reflect", padding=1), nn.MaxPool2d(3, 2), nn.GELU(), nn.LayerNorm(3)],
)
def test_what_is_not_known_has_no_constant(layer):
    assert constant(nn.Sequential(nn.Linear(3, 3), layer)) is None


# Certificates --------------------------------------------------------------------------------------------------------------------------


def classifier(backbone: nn.Module, width: int, std: float = 0.5) -> Classifier:
    last = linear.Head(linear.Params(), width, 3)
    return Classifier(nn.Identity(), Normalise([0.0], [std]), backbone, last, {}).requires_grad_(False).eval()


def test_the_radius_of_a_linear_model_is_the_distance_to_its_boundary():
    """Of orthonormal rows the nearest boundary lies at (l_y - l_j) / |V_y - V_j|, twice as near behind a standard deviation of 1/2."""
    with construct(0, "linear"):
        model = classifier(nn.Flatten(), 4)
    model.head.classifier.weight.copy_(torch.eye(4)[:3])
    model.head.classifier.bias.zero_()
    images = torch.tensor([[0.9, 0.1, 0.3, 0.0], [0.2, 0.8, 0.8, 0.0], [0.1, 0.2, 0.4, 0.9]]).view(3, 1, 2, 2)
    found = certificate.radii(model, images, torch.tensor([0, 0, 2]), 2)
    torch.testing.assert_close(found, torch.tensor([0.6, 0.0, 0.2]) / 2**0.5, rtol=1e-3, atol=0)


def test_a_convnet_has_a_certificate_and_what_is_random_or_unknown_none():
    net = convnet.Backbone(convnet.Params(channels=[2], hidden=4), (1, 8, 8))
    model = classifier(net, net.width)
    assert lipschitz(model) == pytest.approx(2 * constant(net.layers))
    assert lipschitz(model, given) is None  # its own is of its weights
    assert certificate.radii(classifier(nn.Sequential(nn.Flatten(), nn.GELU()), 4), torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), 2) is None


def test_an_attack_inside_a_radius_contradicts_it():
    """Of the two logits x_1 and x_2 the boundary of (0.9, 0.1) lies at 0.8 / sqrt(2), twice as near behind a deviation of 1/2."""
    with construct(0, "linear"):
        model = classifier(nn.Flatten(), 4, std=1.0)
    model.head.classifier.weight.copy_(torch.eye(4)[:3])
    model.head.classifier.bias.zero_()
    images, labels = torch.tensor([[0.9, 0.1, 0.0, 0.0], [0.1, 0.9, 0.0, 0.0]]).view(2, 1, 2, 2), torch.tensor([0, 1])
    found = Outcomes.untouched(labels, images, labels, model(images), torch.ones(2), 0)
    for eps, share in ((0.5, 1.0), (0.6, 0.0)):
        said = certificate.certify(model, found, ThreatModel(norm="l2", eps=eps), 2)
        assert said["robust"] == share and said["lipschitz"] == 1.0
    assert certificate.certify(model, found, ThreatModel(norm="linf", eps=0.25), 2)["robust"] == 1.0  # within 0.25 sqrt(4) = 0.5
    row = torch.tensor([1])
    found.record(
        "pgd", row, images[1:] + torch.tensor([0.9, -0.9, 0.0, 0.0]).view(1, 1, 2, 2), torch.tensor([[1.0, 0.0, 0.0]]), torch.zeros(1)
    )
    certificate.certify(model, found, ThreatModel(norm="l2", eps=0.5), 2)  # that far outside
    found.points[1] = images[1] + torch.tensor([0.3, -0.3, 0.0, 0.0]).view(1, 2, 2)
    with pytest.raises(Mistake, match=r"contradicted at 1 images \(got image 1, broken by pgd at 0.4243 of 0.5656\)"):
        certificate.certify(model, found, ThreatModel(norm="l2", eps=0.5), 2)


# Randomised smoothing --------------------------------------------------------------------------------------------------------------------


class Halfspace(nn.Module):
    """Class 0 where x_1 > 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0, 0, 0] - 0.5, 0.5 - x[:, 0, 0, 0]], 1)


def test_of_a_halfspace_smoothing_certifies_nearly_the_distance_and_never_more():
    """There the smoothed function is the function, and the true radius the distance to the plane; the bound is of 20,000 draws."""
    images = torch.zeros(4, 1, 2, 2)
    images[:, 0, 0, 0] = torch.tensor([0.6, 0.75, 0.4, 0.502])
    found = smoothing.radii(Halfspace(), images, torch.tensor([0, 0, 0, 0]), 0.25, 20_000, generator(0, "smoothing"))
    distance = torch.tensor([0.1, 0.25, 0.0, 0.0])  # the third is misread, the last too near to be sure
    assert (found <= distance).all() and (found >= 0.9 * distance).all()
    again = smoothing.radii(Halfspace(), images, torch.tensor([0, 0, 0, 0]), 0.25, 20_000, generator(0, "smoothing"))
    assert torch.equal(found, again)
