"""ODE-Net and its residual twin: the layers of their source, the solver's order on feature maps, and what is measured of such flows."""

import math
from itertools import pairwise

import pytest
import torch
from problems import Drift
from small import classifier
from torch import Tensor, nn

from basin.config.solver import Solver
from basin.errors import Mistake
from basin.methods.backbones import odenet
from basin.methods.backbones.odenet import Backbone, Params
from basin.models.ode import Flow, flows, solving_with
from basin.models.stability import spectral_radius, starts, stiffness

ORDERS = {"euler": 1, "midpoint": 2, "rk4": 4}


class TimeDrift(nn.Module):
    """dz/dt = cos(t) z, whose solution is z(0) e^(sin t)."""

    def forward(self, t: Tensor | float, z: Tensor) -> Tensor:
        return torch.cos(torch.as_tensor(t)) * z


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(channels: int = 8, **settings) -> Backbone:
    """For 8x8 images, float64, from a seed of its own; the maps are 3x3."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Backbone(Params(channels=channels, halvings=1, **settings), (1, 8, 8)).double()


def orders(flow: Flow, z0: Tensor, method: str, steps: tuple[int, ...], solution: Tensor) -> list[float]:
    """The observed order from each number of steps to the next."""

    def error(n: int) -> float:
        with solving_with(flow, Solver(method=method, steps=n)), torch.no_grad():
            return (flow(z0) - solution).abs().max().item()

    return [math.log2(coarse / fine) / math.log2(m / n) for (n, coarse), (m, fine) in pairwise([(n, error(n)) for n in steps])]


# The solve --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ORDERS)
def test_a_drift_that_sees_time_is_solved_at_the_claimed_order(method):
    flow, z0 = Flow(TimeDrift(), 2.0, Solver(), autonomous=False), draws(2, 3, 4, 4)
    steps = (64, 128) if method == "rk4" else (128, 256)
    assert orders(flow, z0, method, steps, z0 * math.exp(math.sin(2.0))) == pytest.approx([ORDERS[method]], abs=0.15)


def reference(flow: Flow, z0: Tensor) -> Tensor:
    with solving_with(flow, Solver(steps=512)), torch.no_grad():
        return flow(z0)


@pytest.mark.parametrize("method", ORDERS)
def test_through_the_block_the_observed_order_is_the_claimed_one_where_the_drift_is_smooth(method, monkeypatch):
    """With tanh in the place of ReLU; a solver that gave the drift the wrong times would not get there."""
    monkeypatch.setattr(odenet, "relu", torch.tanh)
    (flow,), z0 = flows(small()), draws(2, 8, 3, 3)
    steps = (32, 64) if method == "rk4" else (128, 256)
    assert orders(flow, z0, method, steps, reference(flow, z0)) == pytest.approx([ORDERS[method]], abs=0.25)


@pytest.mark.parametrize(("method", "order"), {"euler": 1, "midpoint": 2, "rk4": 2}.items())
def test_relu_takes_the_order_of_rk4_down_to_two(method, order):
    """At a kink of the drift a step's error is O(h^2), whatever the method."""
    (flow,), z0 = flows(small()), draws(2, 8, 3, 3)
    found = orders(flow, z0, method, (8, 128), reference(flow, z0))
    assert found == pytest.approx([order], abs=0.5)


def test_the_gradient_through_the_block_is_that_of_finite_differences(monkeypatch):
    monkeypatch.setattr(odenet, "relu", torch.tanh)  # finite differences across a kink are no derivative
    (flow,) = flows(small(channels=2, solver=Solver(steps=2)))
    assert torch.autograd.gradcheck(flow, draws(1, 2, 2, 2).requires_grad_())


def test_every_solver_and_gradient_runs():
    net, x = small(), draws(3, 1, 8, 8).requires_grad_()
    for solver in (Solver(method="euler"), Solver(method="dopri5"), Solver(method="dopri5", gradient="adjoint")):
        with solving_with(net, solver):
            (g,) = torch.autograd.grad(net(x).square().sum(), x)
        assert g.isfinite().all() and g.abs().max() > 0


def test_with_fixed_steps_an_image_does_not_depend_on_its_batch_and_with_dopri5_it_does():
    net, x = small(), draws(16, 1, 8, 8) * torch.linspace(0.01, 5, 16)[:, None, None, None]

    def change(solver: Solver) -> float:
        with solving_with(net, solver), torch.no_grad():
            return (net(x)[:1] - net(x[:1])).abs().max().item()

    assert change(Params().solver) < 1e-12 and Params().solver.method == "rk4"
    assert change(Solver(method="dopri5")) > 1e-6


# The layers -------------------------------------------------------------------------------------------------------------------------------


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("channels", [8, 64])
def test_the_ode_has_the_parameters_of_one_residual_block_but_for_time_biases_and_the_last_norm(channels):
    """Each of the two convolutions has 9 C weights for t and C biases; the third normalisation has 2 C."""
    (flow,) = flows(small(channels))
    block = small(channels, blocks="residual").blocks[0]
    assert count(flow) - count(block) == 2 * 9 * channels + 2 * channels + 2 * channels


def test_the_residual_twin_is_six_blocks_without_a_flow_between_the_same_layers():
    ode, residual = small(), small(blocks="residual")
    assert flows(residual) == [] and [type(block).__name__ for block in residual.blocks] == ["ResidualBlock"] * 6
    assert len(small(blocks="residual", residual_blocks=2).blocks) == 2
    around = [{n: p.shape for n, p in net.named_parameters() if not n.startswith("blocks.")} for net in (ode, residual)]
    assert around[0] == around[1]


@pytest.mark.parametrize(("blocks", "parameters"), [("ode", 208266), ("residual", 576778)])
def test_at_the_defaults_it_is_the_example_of_torchdiffeq(blocks, parameters):
    """On 28x28 images, with its Linear(64, 10): counted by hand from the example's layers, and 6x6 maps."""
    C, norm = 64, 2 * 64
    stem = (9 * C + C) + 2 * (norm + 16 * C * C + C)
    block = 3 * norm + 2 * (9 * (C + 1) * C + C) if blocks == "ode" else 6 * (2 * norm + 2 * 9 * C * C)
    assert stem + block + norm + 10 * C + 10 == parameters
    net = Backbone(Params(blocks=blocks), (1, 28, 28))
    assert count(net) + count(nn.Linear(net.width, 10)) == parameters
    assert net.stem(torch.zeros(1, 1, 28, 28)).shape == (1, 64, 6, 6) and net.norm.num_groups == 32


@pytest.mark.parametrize(("shape", "halvings"), [((1, 8, 8), 1), ((1, 4, 4), 0), ((1, 28, 28), 2), ((3, 32, 32), 2), ((3, 20, 32), 3)])
def test_images_of_many_sizes_fit(shape, halvings):
    net = Backbone(Params(channels=4, halvings=halvings, solver=Solver(steps=1)), shape)
    assert net(torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))).shape == (2, net.width) == (2, 4)


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((1, 8, 8), "Give at most 1."),
        ((3, 32, 4), "Give at most 0."),
        ((1, 3, 8), "Choose another backbone: images of fewer than 4x4 pixels are too small for this one."),
        ((1, 1, 1), "Choose another backbone: images of fewer than 4x4 pixels are too small for this one."),
    ],
)
def test_an_image_that_is_too_small_is_refused(shape, advice):
    with pytest.raises(Mistake) as mistake:
        Backbone(Params(channels=4), shape)
    assert str(mistake.value) == (
        f"backbone.halvings: 2 leave maps of fewer than 2x2 pixels, too few to normalise in groups (got shape {shape}). {advice}"
    )
    most = int(advice[-2]) if "at most" in advice else None
    if most is not None:
        Backbone(Params(channels=4, halvings=most), shape)


def test_over_one_pixel_group_normalisation_would_leave_signs():
    """Why such maps are refused: 64 channels in 32 groups are pairs, and a normalised pair is plus and minus one."""
    assert torch.allclose(odenet.norm(64).double()(draws(4, 64, 1, 1)).abs(), torch.ones(4, 64, 1, 1, dtype=torch.float64), atol=0.1)


# What is measured -------------------------------------------------------------------------------------------------------------------------


def test_power_iteration_finds_the_largest_eigenvalue_of_a_known_spectrum():
    """Over the six entries of each map: -1, -6, 0.5, 2 and -3 +- 4i, then the same with the pair (modulus 5) made the largest."""
    for real, largest in ((-6.0, 6.0), (-2.0, 5.0)):
        block = torch.block_diag(torch.diag(torch.tensor([-1.0, real, 0.5, 2.0])), torch.tensor([[-3.0, 4.0], [-4.0, -3.0]])).double()
        basis = draws(6, 6)
        A = basis @ block @ basis.inverse()
        flow = Flow(Drift(lambda z, A=A: (z.flatten(1) @ A.T).view_as(z)), 5.0, Solver(steps=10))
        z0 = draws(3, 1, 2, 3)
        assert spectral_radius(flow, z0) == pytest.approx([largest] * 3, rel=0.05)
        assert stiffness(flow, z0) == pytest.approx(largest * 5.0 / 10, rel=0.05)


def test_power_iteration_of_a_drift_that_stands_still_is_zero():
    assert spectral_radius(Flow(Drift(lambda z: 0 * z), 1.0, Solver()), draws(2, 1, 2, 2)).tolist() == pytest.approx([0, 0], abs=1e-30)


def test_stiffness_of_the_block_is_near_that_of_its_whole_jacobian():
    net = small(channels=4)
    ((flow, z0),) = starts(net, draws(4, 1, 8, 8))
    J = torch.stack([torch.func.jacrev(lambda z: flow.rate(0.0, z[None])[0])(z).reshape(36, 36) for z in z0])
    assert spectral_radius(flow, z0).tolist() == pytest.approx(torch.linalg.eigvals(J).abs().amax(1).tolist(), rel=0.1)


def test_the_flow_of_a_classifier_starts_at_the_stems_maps():
    model = classifier({"kind": "odenet", "channels": 8, "halvings": 1, "solver": {"steps": 3}})
    ((flow, z0),) = starts(model, torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert z0.shape == (5, 8, 3, 3) and flow.nfe == 12
