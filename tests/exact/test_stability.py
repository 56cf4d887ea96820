"""The measures of stability, held to linear flows, for which all of them are known."""

import json
import math
from pathlib import Path

import pytest
import torch
from problems import Drift
from small import classifier, few
from torch import Tensor

from basin.config import params
from basin.config.solver import Solver
from basin.errors import Mistake
from basin.methods.heads.sodef import SineDrift
from basin.models import stability
from basin.models.ode import Flow, flows
from basin.stages import entry, train
from basin.tracking.journal import Run

ROOT = Path(__file__).parents[2]


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(rows: list[list[float]]) -> Flow:
    A = torch.tensor(rows, dtype=torch.float64)
    return Flow(Drift(lambda z: z @ A.T), 1.0, Solver())


def test_the_spectrum_is_found_in_any_basis():
    block = torch.block_diag(torch.diag(torch.tensor([-1.0, -6.0])), torch.tensor([[-0.5, 4.0], [-4.0, -0.5]])).double()
    basis = draws(4, 4)
    A = basis @ block @ basis.inverse()
    found = stability.measure(Flow(Drift(lambda z: z @ A.T), 1.0, Solver()), draws(3, 4))
    for eigenvalues in found.spectrum:
        assert sorted(eigenvalues.tolist(), key=lambda z: (z.real, z.imag)) == pytest.approx([-6, -1, -0.5 - 4j, -0.5 + 4j])
    numbers = found.numbers()
    assert numbers["rightmost_median"] == numbers["rightmost_max"] == pytest.approx(-0.5)
    assert numbers["left_half_plane"] == 1


def test_a_jacobian_that_is_not_finite_is_said_to_be():
    """LAPACK ends the process on it."""
    overflown = linear([[math.inf, 0], [0, -2]])
    assert stability.stiffness(overflown, draws(2, 2)) == math.inf
    with pytest.raises(Mistake, match=r"^flow: its Jacobian is not finite \(got inf or nan"):
        stability.measure(overflown, draws(2, 2))


def test_a_stable_flow_need_not_contract():
    """J = [[-1, 10], [0, -2]]: eigenvalues -1 and -2, but its symmetric part has (-3 +- sqrt(101)) / 2."""
    numbers = stability.measure(linear([[-1, 10], [0, -2]]), draws(2, 2)).numbers()
    assert numbers["left_half_plane"] == 1 and numbers["rightmost_max"] == pytest.approx(-1)
    assert numbers["log_norm_max"] == numbers["log_norm_median"] == pytest.approx((-3 + math.sqrt(101)) / 2)


def test_the_logarithmic_norm_bounds_the_growth_of_a_distance():
    """||exp(A t)|| <= e^(mu t), with equality to first order in t (Dahlquist)."""
    A = draws(5, 5)
    (mu,) = stability.measure(Flow(Drift(lambda z: z @ A.T), 1.0, Solver()), draws(1, 5)).log_norm.tolist()
    for t in (1e-4, 0.1, 1.0):
        assert torch.linalg.matrix_norm(torch.linalg.matrix_exp(A * t), 2).log().item() <= mu * t + 1e-12
    assert torch.linalg.matrix_norm(torch.linalg.matrix_exp(A * 1e-4), 2).log().item() / 1e-4 == pytest.approx(mu, rel=1e-2)


@pytest.mark.parametrize(
    ("rows", "by_row", "by_column"),
    [
        ([[-3, 2], [1, -2.5]], True, True),
        ([[-2, 1.5], [1.8, -1.9]], True, True),
        ([[-3, 2.5], [0, -1]], True, False),  # the second column: 1 < 2.5
        ([[-3, 0], [2.5, -1]], False, True),
        ([[-1, 1], [0, -5]], False, True),  # equal is not strict
        ([[3, 1], [1, 3]], True, True),  # dominance alone does not know left from right
    ],
)
def test_dominance_is_strict_and_of_rows_or_columns(rows, by_row, by_column):
    numbers = stability.measure(linear(rows), draws(4, 2)).numbers()
    assert (numbers["row_dominant"], numbers["column_dominant"]) == (by_row, by_column)
    assert numbers["left_half_plane"] == (rows[0][0] < 0)


def test_the_speed_is_the_mean_norm_of_the_drift():
    z0 = torch.tensor([[3.0, 4.0], [0.0, 1.0]], dtype=torch.float64)
    assert stability.measure(linear([[-2, 0], [0, -2]]), z0).numbers()["speed"] == pytest.approx((10 + 2) / 2)


def test_shares_and_medians_are_over_the_images():
    """f(z) = z^3 / 3 - z in one dimension: J = z^2 - 1, stable where |z| < 1."""
    z0 = torch.tensor([[0.0], [0.5], [2.0]], dtype=torch.float64)
    numbers = stability.measure(Flow(Drift(lambda z: z**3 / 3 - z), 1.0, Solver()), z0).numbers()
    assert numbers["left_half_plane"] == pytest.approx(2 / 3)
    assert (numbers["rightmost_median"], numbers["rightmost_max"]) == pytest.approx((-0.75, 3))
    assert (numbers["log_norm_median"], numbers["log_norm_max"]) == pytest.approx((-0.75, 3))


def test_sodefs_drift_at_its_equilibrium():
    """f = sin(-(W z + b)) with W = 2 I and z at the zero: J = -2 I, speed 0."""
    drift = SineDrift(3)
    with torch.no_grad():
        drift.linear.weight.copy_(2 * torch.eye(3))
        drift.linear.bias.fill_(1.0)
    found = stability.measure(Flow(drift, 1.0, Solver()), torch.full((2, 3), -0.5))
    assert found.spectrum.real.tolist() == [[-2.0] * 3] * 2 and found.log_norm.tolist() == [-2.0] * 2
    assert found.speed.tolist() == [0.0, 0.0] and found.row_dominant.all() and found.column_dominant.all()


# What a training stage tells ------------------------------------------------------------------------------------------------------------


def reported(model, digits, tmp_path) -> dict[str, float]:
    """The metrics that are logged after training, from the journal."""
    stage = entry.Stage("backbone/small", params.load(ROOT / "params.yaml"), "cpu", Run(tmp_path / "journal.jsonl"))
    train.report_flows(stage, model.eval(), digits["validation"])
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    return {name: value for line in lines for name, value in json.loads(line)["metrics"].items()}


def test_a_training_stage_logs_the_measures_of_held_out_images(digits, tmp_path):
    model = classifier(head={"kind": "sodef", "width": 16, "solver": {"steps": 8}})
    metrics = reported(model, digits, tmp_path)
    (flow,), (x, _) = flows(model), few(digits["validation"], 64)
    numbers = stability.measure(flow, model.head.state(model.features(x))).numbers()
    assert metrics.pop("head.nfe") == 32 and metrics.pop("head.stiffness") > 0
    assert metrics == pytest.approx({f"head.{name}": value for name, value in numbers.items()})


def test_two_flows_in_one_classifier_are_logged_apart(digits, tmp_path):
    model = classifier(
        {"kind": "odenet", "channels": 16, "halvings": 1, "solver": {"steps": 2}}, {"kind": "ode", "width": 16, "solver": {"steps": 3}}
    )
    metrics = reported(model, digits, tmp_path)
    assert (metrics["backbone.nfe"], metrics["head.nfe"]) == (8, 12)
    assert metrics["backbone.stiffness"] > 0 and "backbone.log_norm_max" not in metrics and "head.log_norm_max" in metrics
