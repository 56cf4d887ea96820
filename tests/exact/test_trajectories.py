"""How trajectories part, and what they are held to: flows for which both are known."""

import json
import math

import pytest
import torch
from problems import PROBLEMS, Drift
from small import classifier, few
from torch import Tensor, nn

from basin.config.solver import Solver
from basin.evaluation import trajectories
from basin.evaluation.trajectories import part
from basin.methods.heads.sodef import SineDrift
from basin.models import stability
from basin.models.lipschitz import constant
from basin.models.ode import Flow, flows

FINE = Solver(steps=128)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Matrix(nn.Linear):
    """dz/dt = A z."""

    def __init__(self, A: Tensor):
        super().__init__(*A.shape, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.weight.copy_(A)


def linear(A: Tensor, T: float = 1.0, solver: Solver = FINE) -> Flow:
    return Flow(Matrix(A).requires_grad_(False), T, solver)


SPECTRA = {
    "stable": torch.diag(torch.tensor([-1.0, -2, -3])),
    "a focus and a saddle": torch.block_diag(torch.tensor([[-0.5, 4], [-4, -0.5]]), torch.tensor([[1.0]])),
    "stable, not normal": torch.tensor([[-1.0, 10, 0], [0, -2, 10], [0, 0, -3]]),
}
spectra = pytest.mark.parametrize("A", [A.double() for A in SPECTRA.values()], ids=list(SPECTRA))


# The solve at several times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_a_trajectory_is_the_solution_at_each_time(problem, method):
    times = torch.linspace(0, 1.5, 9, dtype=torch.float64)
    solver = Solver(method=method, steps=64, tolerance=1e-9)
    found = Flow(Drift(problem.f), 1.5, solver).trajectory(problem.z0, times)
    torch.testing.assert_close(found, torch.stack([problem.solution(t) for t in times.tolist()]), rtol=0, atol=1e-6)


def test_a_trajectory_ends_where_the_reported_function_does():
    flow, z0 = linear(draws(4, 4), 2.0, Solver(steps=7)), draws(5, 4)
    ends = flow.trajectory(z0, torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64))[-1]
    torch.testing.assert_close(ends, flow(z0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 5, 16, 17, 100])
def test_distances_are_taken_where_the_solver_stands(steps):
    times = trajectories._times(linear(draws(2, 2), 3.0, Solver(steps=steps)))
    assert len(times) == min(steps, 16) + 1 and (times[0], times[-1]) == (0, 3) and (times.diff() > 0).all()
    assert torch.allclose((times * steps / 3).round(), times * steps / 3, atol=1e-12)


# Linear flows: everything is known ----------------------------------------------------------------------------------------------------


@spectra
def test_on_a_linear_flow_the_distance_is_that_of_the_matrix_exponential(A):
    z, delta = draws(6, 3), draws(6, 3, seed=1)
    found = part(linear(A, 2.0), z, z + delta)
    for t, ratio in zip(found.times.tolist(), found.ratio, strict=True):
        by_hand = (delta @ torch.linalg.matrix_exp(A * t).T).norm(dim=1) / delta.norm(dim=1)
        torch.testing.assert_close(ratio, by_hand, rtol=1e-6, atol=0)


@spectra
def test_on_a_linear_flow_the_estimates_are_exact(A):
    """J is A everywhere, so the exponent is mu t and the norm met is ||A||."""
    mu = torch.linalg.eigvalsh((A + A.T) / 2)[-1]
    found = part(linear(A, 2.0), draws(6, 3), draws(6, 3, seed=1))
    torch.testing.assert_close(found.exponent, (mu * found.times)[:, None].expand(-1, 6))
    assert found.met == pytest.approx(torch.linalg.matrix_norm(A, 2).item()) == constant(Matrix(A))
    assert found.numbers()["log_norm_path"] == pytest.approx(mu.item())


def test_groenwall_is_tight_where_a_flow_expands_alike_in_all_directions():
    found = part(linear(0.7 * torch.eye(3, dtype=torch.float64), 2.0), draws(6, 3), draws(6, 3, seed=1))
    for exponent in (found.exponent, found.met * found.times[:, None].expand(-1, 6)):
        torch.testing.assert_close(found.ratio, exponent.exp(), rtol=1e-6, atol=0)


def test_a_contraction_shows_what_groenwall_cannot():
    """dz/dt = -2 z: distances shrink as e^(-2t), the logarithmic norm says so, and e^(Lt) still grows as e^(2t)."""
    found = part(linear(-2 * torch.eye(3, dtype=torch.float64)), draws(6, 3), draws(6, 3, seed=1))
    torch.testing.assert_close(found.ratio, found.exponent.exp(), rtol=1e-6, atol=0)
    numbers = found.numbers()
    assert (numbers["growth_median"], numbers["growth_peak"], numbers["lipschitz_met"]) == pytest.approx((math.exp(-2), 1, 2))


def test_a_stable_flow_that_is_not_normal_grows_before_it_decays():
    A, z = SPECTRA["stable, not normal"].double(), draws(1, 3)
    numbers = part(linear(A, 16.0), z, z + torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)).numbers()
    assert numbers["growth_median"] < 1e-3 and numbers["growth_peak"] > 5


# Flows that are not linear -------------------------------------------------------------------------------------------------------------


def sine(scale: float, seed: int = 0) -> SineDrift:
    drift = SineDrift(6).double().requires_grad_(False)
    drift.linear.weight.copy_(scale * draws(6, 6, seed=seed))
    return drift


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_distances_keep_to_the_bound_and_to_the_sharper_estimate(scale, seed):
    """On SODEF's drift, for perturbations as large as the states themselves."""
    drift = sine(scale, seed)
    found = part(Flow(drift, 2.0, Solver(steps=64)), draws(20, 6), draws(20, 6, seed=1))
    L = constant(drift)
    assert found.met <= L * (1 + 1e-12)
    assert (found.ratio <= (L * found.times).exp()[:, None] * (1 + 1e-6)).all()
    assert (found.ratio <= found.exponent.exp() * (1 + 0.05)).all()  # 5%: Simpson's rule on three points, trapezia in time
    assert (found.exponent[-1] < found.met * found.times[-1]).all()


def test_lipschitz_constants_come_from_the_layers():
    A, B = draws(4, 4), draws(4, 4, seed=1)
    norms = [torch.linalg.matrix_norm(M, 2).item() for M in (A, B)]
    assert constant(nn.Sequential(Matrix(A), nn.Tanh(), Matrix(B))) == pytest.approx(norms[0] * norms[1])
    drift = sine(1.0)
    assert constant(drift) == pytest.approx(torch.linalg.matrix_norm(drift.linear.weight, 2).item())
    assert constant(nn.Sequential(Matrix(A), nn.GELU())) is None and constant(Drift(torch.sin)) is None


def test_the_largest_singular_value_of_a_map_is_found():
    """The drift is a matrix on flattened maps [n, 2, 3, 3]."""
    A = draws(18, 18)
    flow = Flow(Drift(lambda z: (z.flatten(1) @ A.T).view_as(z)), 1.0, Solver())
    norm = torch.linalg.matrix_norm(A, 2).item()
    found = stability.spectral_norm(flow, draws(3, 2, 3, 3))
    assert found.tolist() == pytest.approx([norm] * 3, rel=0.02) and found.max() <= norm * (1 + 1e-9)


def test_maps_are_followed_too():
    z = draws(3, 2, 4, 4)
    found = part(Flow(Drift(lambda z: 0.5 * z), 2.0, FINE), z, z + 0.1 * draws(3, 2, 4, 4, seed=1))
    assert found.exponent is None and found.met == pytest.approx(0.5)
    torch.testing.assert_close(found.ratio, (0.5 * found.times).exp()[:, None].expand(-1, 3), rtol=1e-6, atol=0)


def test_of_a_wide_state_norms_alone_are_found():
    A, z = 0.1 * draws(257, 257), draws(2, 257)
    found = part(linear(A, 0.1, Solver(steps=2)), z, z + 1)
    assert found.exponent is None and found.met == pytest.approx(torch.linalg.matrix_norm(A, 2).item(), rel=0.03)


# Which pairs -----------------------------------------------------------------------------------------------------------------------------


def test_only_rows_that_differ_and_stay_finite_are_pairs():
    """z' = z^3 escapes to infinity in finite time from 2, and the second row was not moved."""
    flow = Flow(Drift(lambda z: z**3), 1.0, Solver(steps=8))
    z, other = torch.tensor([[0.1], [0.2], [20.0]]), torch.tensor([[0.2], [0.2], [21.0]])
    assert part(flow, z, other).ratio.shape == (9, 1)
    assert part(flow, z[1:2], other[1:2]) is None


# What an attack stage writes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    odenet = {"kind": "odenet", "channels": 16, "halvings": 1, "solver": {"steps": 2}}
    return classifier(odenet, {"kind": "ode", "width": 16, "solver": {"steps": 3}}).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pairs(digits):
    x, _ = few(digits["test"], 70)
    return x, (x + 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def test_each_flow_is_written_with_its_numbers(model, pairs, tmp_path):
    numbers = trajectories.write(tmp_path, model, *pairs)
    backbone, head = json.loads((tmp_path / "stability.json").read_text())["flows"]
    assert (backbone["flow"], head["flow"], head["images"], head["trajectories"]["pairs"]) == ("backbone.blocks", "head.flow", 64, 64)
    assert numbers == {
        f"{flow['flow'].split('.')[0]}.{name}": value for flow in (backbone, head) for name, value in flow["numbers"].items()
    }
    flow = flows(model.head)[0]
    measured = stability.measure(flow, model.head.state(model.features(pairs[0][:64])))
    expected = measured.numbers() | {"nfe": 12, "lipschitz": constant(flow.drift)}
    assert {name: head["numbers"][name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert head["numbers"]["growth_median"] == head["trajectories"]["median"][-1]
    assert backbone["spectrum"] == [] and not {"lipschitz", "log_norm_max"} & backbone["numbers"].keys()
    assert list(backbone["trajectories"]["exponents"]) == ["lipschitz_met"]
    assert list(head["trajectories"]["exponents"]) == ["lipschitz", "lipschitz_met", "log_norm"]


def test_a_spectrum_is_thinned_but_keeps_both_ends(model, pairs):
    z = model.head.state(model.features(pairs[0]))
    spectrum = stability.measure(flows(model.head)[0], z).spectrum
    kept = trajectories._thinned(spectrum)
    assert spectrum.numel() > 1024 > 512 == len(kept) and kept == sorted(kept) and min(imaginary for _, imaginary in kept) == 0
    assert [kept[0][0], kept[-1][0]] == pytest.approx([spectrum.real.min().item(), spectrum.real.max().item()], rel=1e-4)


def test_the_same_pairs_give_the_same_bytes_and_leave_the_model_alone(model, pairs, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for folder in ("one", "two"):
        trajectories.write(tmp_path / folder, model, *(x[:8] for x in pairs))
    assert (tmp_path / "one/stability.json").read_bytes() == (tmp_path / "two/stability.json").read_bytes()
    assert all(torch.equal(value, before[name]) and value.dtype == torch.float32 for name, value in model.state_dict().items())


def test_a_point_that_moves_nothing_leaves_no_trajectories(model, pairs):
    (_, head) = trajectories.measure(model, pairs[0][:4], pairs[0][:4])
    assert head["trajectories"] is None and "growth_median" not in head["numbers"] and head["numbers"]["nfe"] == 12


def test_a_model_without_a_flow_writes_nothing(trained, pairs, tmp_path):
    assert trajectories.write(tmp_path, trained, *pairs) == {} and not list(tmp_path.iterdir())
