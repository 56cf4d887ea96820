"""SODEF held to its paper: the MaxMin matrix, the regulariser, and what the stability phase does to the spectrum."""

import numpy as np
import pytest
import torch
from small import SODEF, classifier, few, method
from torch import nn

from pipeline import optimise
from pipeline.errors import Mistake
from pipeline.heads import sodef
from pipeline.ode import Flow, Solver


@pytest.mark.parametrize(("k", "d"), [(2, 2), (2, 7), (3, 3), (10, 10), (10, 64), (100, 128)])
def test_maxmin_cosines_are_the_least_possible(k, d):
    """Corollary 1: unit rows, every cosine 1 / (1 - k)."""
    V = sodef.maxmin(k, d).double()
    assert V.shape == (k, d)
    cosines = V @ V.T
    wanted = torch.full((k, k), 1 / (1 - k), dtype=torch.float64).fill_diagonal_(1)
    assert (cosines - wanted).abs().max() < 1e-6


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (4, 9), (16, 32)])
def test_orthonormalise_gives_orthonormal_rows_and_keeps_them(rows, columns):
    linear = nn.Linear(columns, rows, bias=False)
    nn.init.normal_(linear.weight, generator=torch.Generator().manual_seed(0))
    sodef.orthonormalise(linear)
    once = linear.weight.detach().clone()
    torch.testing.assert_close(once @ once.T, torch.eye(rows), atol=1e-6, rtol=0)
    sodef.orthonormalise(linear)  # a retraction leaves what is on the manifold, signs included
    torch.testing.assert_close(linear.weight.detach(), once, atol=1e-6, rtol=0)


def reference(W: np.ndarray, b: np.ndarray, z: np.ndarray, w_diag: float, w_off: float, w_f: float) -> float:
    """The released code's three terms, index by index, from the formulae in papers and docstring."""
    n, d = z.shape
    diag, off, rate = [], [], []
    for row in z:
        J = np.array([[-np.cos(-(W[i] @ row + b[i])) * W[i, j] for j in range(d)] for i in range(d)])
        diag += [np.exp(1.0 * (J[i, i] + 1.0)) for i in range(d)]
        off += [np.exp(0.1 * (sum((-1 if i == j else 1) * abs(J[i, j]) for i in range(d)) + 1.0)) for j in range(d)]
        rate += [(50 * abs(np.sin(-(W[i] @ row + b[i])))) ** 2 for i in range(d)]
    return w_diag * np.mean(diag) + w_off * np.mean(off) + w_f * np.mean(rate)


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (10.0, 10.0, 0.2)])
def test_the_regulariser_is_that_of_the_released_code(weights):
    draw = np.random.default_rng(0)
    W, b, z = draw.normal(size=(4, 4)), draw.normal(size=4), draw.normal(size=(3, 4))
    drift = sodef.SineDrift(4).double()
    drift.linear.weight.data, drift.linear.bias.data = torch.from_numpy(W), torch.from_numpy(b)
    settings = sodef.Stability(epochs=1, **dict(zip(("w_diag", "w_off", "w_f"), weights)))
    value = sodef.regulariser(settings, Flow(drift, 5.0, Solver()), torch.from_numpy(z)).item()
    assert value == pytest.approx(reference(W, b, z, *weights), rel=1e-12)


def test_the_stability_phase_moves_the_spectrum_to_the_left_and_the_equilibria_to_the_features(digits, tmp_path):
    model = classifier(head=SODEF).eval()
    schedules = sodef.Schedules.model_validate(
        {"features": {"epochs": 1}, "stability": {"epochs": 3, "batch": 32, "rate": 0.01}, "classifier": {"epochs": 1}}
    )
    phase = sodef.phases(schedules, model, method("natural"), digits["validation"])[1]
    assert phase.name == "stability"

    @torch.no_grad()
    def measured() -> tuple[float, float, float]:
        """The largest real part of an eigenvalue, the mean one, and the mean |f|, at held-out images."""
        z = model.head.state(model.features(few(digits["test"], 64)[0]))
        real = torch.linalg.eigvals(model.head.flow.jacobian(z)).real
        return real.max().item(), real.mean().item(), model.head.flow.drift(z).abs().mean().item()

    before = measured()
    optimise.run(model, [phase], digits["train"], lambda: 0.0, (0, "x"), tmp_path / "c.safetensors")
    after = measured()
    assert before[0] > 0 > after[0]
    assert after[1] < before[1]
    assert after[2] < 0.5 * before[2]


def test_the_projection_stays_orthonormal_while_it_is_trained(digits, tmp_path):
    model = classifier(head=SODEF)
    plan = sodef.Schedules.model_validate({name: {"epochs": 1, "rate": 0.05} for name in ("features", "stability", "classifier")})
    phase = sodef.phases(plan, model, method("natural"), digits["validation"])[0]
    before = model.head.projection.weight.clone()
    optimise.run(model, [phase], digits["validation"], lambda: 0.0, (0, "x"), tmp_path / "c.safetensors")
    P = model.head.projection.weight.detach()
    torch.testing.assert_close(P @ P.T, torch.eye(len(P)), atol=1e-5, rtol=0)
    assert (P - before).abs().max() > 0.01


@pytest.mark.parametrize("width", [9, 33])
def test_a_width_that_does_not_fit_is_refused(width):
    with pytest.raises(Mistake, match=rf"head.width: does not fit \(got {width}\).* give 10 \(classes\) to 32 \(the backbone's width\)\."):
        classifier(head=SODEF | {"width": width})
