"""SODEF held to its paper: the MaxMin matrix, both forms' terms, the constraints, and what the stability phase does to the spectrum."""

import csv
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small import SODEF, classifier, few, fit, method
from torch import nn

from basin.config import params
from basin.config.kinds import choose
from basin.config.solver import Solver
from basin.config.splits import SplitSettings
from basin.data.splits import prepare
from basin.errors import Mistake
from basin.methods.heads import sodef
from basin.methods.sources import digits as digits_source
from basin.models import artifact, lyapunov
from basin.models.classifier import Classifier
from basin.models.ode import STABILITY_LIMIT, Flow
from basin.models.stability import stiffness
from basin.training import optimise

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("k", "d"), [(2, 2), (2, 7), (3, 3), (10, 10), (10, 64), (100, 128)])
def test_maxmin_cosines_are_the_least_possible(k, d):
    """Corollary 1: unit rows, every cosine 1 / (1 - k)."""
    V = lyapunov.maxmin(k, d).double()
    assert V.shape == (k, d)
    cosines = V @ V.T
    wanted = torch.full((k, k), 1 / (1 - k), dtype=torch.float64).fill_diagonal_(1)
    assert (cosines - wanted).abs().max() < 1e-6


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (4, 9), (16, 32)])
def test_orthonormalise_gives_orthonormal_rows_and_keeps_them(rows, columns):
    linear = nn.Linear(columns, rows, bias=False)
    nn.init.normal_(linear.weight, generator=torch.Generator().manual_seed(0))
    lyapunov.orthonormalise(linear)
    once = linear.weight.detach().clone()
    torch.testing.assert_close(once @ once.T, torch.eye(rows), atol=1e-6, rtol=0)
    lyapunov.orthonormalise(linear)  # a retraction leaves what is on the manifold, signs included
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


# The paper's form ------------------------------------------------------------------------------------------------------------------------

PAPER = SODEF | {"form": "paper"}
A = torch.tensor(
    [[-2.0, 0.5, 0.25], [1.0, -1.0, 0.0], [0.0, -0.25, -0.5]], dtype=torch.float64
)  # trace -3.5, off the diagonal 2, excess -1.5


def linear_flow(A: torch.Tensor) -> Flow:
    """dz/dt = A z, whose Jacobian is A everywhere."""
    drift = nn.Linear(len(A), len(A), bias=False, dtype=A.dtype)
    drift.weight.data = A.clone()
    return Flow(drift, 1.0, Solver())


@pytest.mark.parametrize(
    ("weights", "value"),
    [
        ((1.0, 0.0, 0.0), (math.sqrt(4 + 1 + 0) + math.sqrt(0.25 + 1 + 0.0625)) / 2),  # columns 1 and 2 of A
        ((0.0, 1.0, 0.0), math.exp(-3.5)),
        ((0.0, 0.0, 1.0), math.exp(2 - 3.5)),
        ((1.0, 0.05, 0.05), (math.sqrt(5) + math.sqrt(1.3125)) / 2 + 0.05 * (math.exp(-3.5) + math.exp(-1.5))),
    ],
)
def test_equation_7s_terms_on_a_linear_drift_are_those_computed_by_hand(weights, value):
    settings = sodef.PaperSchedule(epochs=2, **dict(zip(("a1", "a2", "a3"), weights)))
    z = torch.eye(3, dtype=torch.float64)[:2]
    assert sodef.lagrangian(settings, linear_flow(A), z).item() == pytest.approx(value, rel=1e-12)


def test_equation_7_adds_the_terms_to_the_cross_entropy_of_the_fixed_classifier(digits):
    model, (x, y) = classifier(head=PAPER).eval(), few(digits["test"], 8)
    schedule = sodef.PaperSchedule(epochs=2)
    phase = sodef.phases(schedule, model, method("natural"), digits["validation"])[1]
    (loss,) = phase.loss(x, y, torch.Generator())
    z0 = model.head.state(model.features(x))
    cross_entropy = nn.functional.cross_entropy(model.head.flow(z0) @ lyapunov.maxmin(10, 16).T, y)
    torch.testing.assert_close(loss, cross_entropy + sodef.lagrangian(schedule, model.head.flow, z0))


def test_g_is_exp_up_to_5_and_its_tangent_above():
    x = torch.tensor([-200.0, -1.0, 0.0, 4.9, 5.0, 7.0, 1e4], dtype=torch.float64, requires_grad=True)
    e5 = math.exp(5)
    wanted = torch.cat([x[:5].exp(), e5 * (1 + x[5:] - 5)])
    torch.testing.assert_close(sodef.exponential(x), wanted)
    (slope,) = torch.autograd.grad(sodef.exponential(x).sum(), x)
    torch.testing.assert_close(slope[[0, 1, 2, 3, 5, 6]], torch.cat([x[:4].exp(), torch.full((2,), e5, dtype=torch.float64)]))


@pytest.mark.parametrize("drift", ["sine", "two_layers"])
def test_equation_7_is_finite_in_float32_at_fresh_weights_where_exp_is_not(drift):
    head = sodef.Head(sodef.Params(form="paper", drift=drift), 128, 10)
    z = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    J = head.flow.jacobian(z)
    excess = J.abs().sum((1, 2)) - 2 * J.diagonal(dim1=1, dim2=2).abs().sum(1)
    assert excess.max() > 50 and (drift == "two_layers" or excess.exp().isinf().any())
    value = sodef.lagrangian(sodef.PaperSchedule(epochs=2), head.flow, z)
    assert value.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, list(head.flow.parameters())))


@pytest.mark.parametrize("drift", ["sine", "two_layers"])
@pytest.mark.parametrize("form", ["paper", "released"])
def test_the_gradient_of_either_regulariser_is_exact(form, drift):
    head = sodef.Head(sodef.Params(width=4, drift=drift), 4, 3).double()
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = {"paper": sodef.PaperSchedule(epochs=2), "released": sodef.Stability(epochs=1)}[form]
    term = {"paper": sodef.lagrangian, "released": sodef.regulariser}[form]
    assert torch.autograd.gradcheck(lambda *parameters: term(weights, head.flow, z), tuple(head.flow.parameters()))


@pytest.mark.parametrize(("epochs", "split"), [(150, (30, 120)), (20, (4, 16)), (7, (1, 6)), (2, (1, 1))])
def test_a_fifth_of_the_epochs_is_cross_entropy_and_the_rest_equation_7(epochs, split, digits):
    choice = choose("heads", PAPER)
    schedule = params.schedules(choice).model_validate({"epochs": epochs, "rate": 0.03})
    plan = sodef.phases(schedule, classifier(head=PAPER), method("natural"), digits["validation"])
    assert [(phase.name, phase.schedule.epochs, phase.schedule.rate) for phase in plan] == [
        ("features", split[0], 0.03),
        ("stability", split[1], 0.03),
    ]


@pytest.mark.parametrize("release", [False, True])
def test_the_projection_is_trained_with_equation_7_only_where_it_is_released(release, digits, tmp_path):
    model = classifier(head=PAPER)
    phases = sodef.phases(sodef.PaperSchedule(epochs=2, rate=0.01, release=release), model, method("natural"), digits["train"])
    before = model.head.projection.weight.clone()
    optimise.run(model, phases[1:], digits["validation"], lambda: 0.0, (0, "x"), tmp_path / "c.safetensors")
    P = model.head.projection.weight.detach()
    assert torch.equal(P, before) != release
    torch.testing.assert_close(P @ P.T, torch.eye(len(P)), atol=1e-5, rtol=0)


def test_the_paper_form_classifies_with_the_fixed_matrix_alone(digits):
    model = classifier(head=PAPER)
    assert not any(name.startswith("head.classifier") for name in model.state_dict())
    z = model.features(few(digits["test"], 8)[0])
    torch.testing.assert_close(model.head(z), model.head.flow(model.head.state(z)) @ lyapunov.maxmin(10, 16).T, rtol=1e-5, atol=1e-6)


def test_a_form_has_its_own_schedule_and_the_other_ones_is_refused():
    released = {name: {"epochs": 1} for name in ("features", "stability", "classifier")}
    with pytest.raises(ValueError, match="epochs"):
        params.schedules(choose("heads", PAPER)).model_validate(released)
    with pytest.raises(ValueError, match="features"):
        params.schedules(choose("heads", SODEF)).model_validate({"epochs": 2})
    with pytest.raises(ValueError, match="at least 2: a fifth for the projection, the rest for equation"):
        params.schedules(choose("heads", PAPER)).model_validate({"epochs": 1})
    with pytest.raises(ValueError, match="takes all epochs of the first phase, a fifth of them. Give it fewer."):
        params.schedules(choose("heads", PAPER)).model_validate({"epochs": 14, "policy": "cosine", "warmup": 2})
    params.schedules(choose("heads", PAPER)).model_validate({"epochs": 15, "policy": "cosine", "warmup": 2})


# The bound -------------------------------------------------------------------------------------------------------------------------------

BOUND = 0.2
RATE = {"epochs": 2, "rate": 0.1}
EVERY_FORM = [
    ({"kind": "sodef", "form": "released", "drift": drift}, {name: RATE for name in ("features", "stability", "classifier")})
    for drift in ("sine", "two_layers")
] + [({"kind": "sodef", "form": "paper", "drift": drift}, RATE) for drift in ("sine", "two_layers")]
EVERY_FORM += [({"kind": "ode"}, {"classifier": RATE})]


@pytest.mark.parametrize(("form", "schedule"), EVERY_FORM, ids=[" ".join(form.values()) for form, _ in EVERY_FORM])
def test_the_bound_holds_after_training_and_bounds_every_jacobian(form, schedule, digits, tmp_path):
    def trained(bound: float | None) -> torch.nn.Module:
        choice = choose("heads", {"width": 16, "T": 2.0, "solver": {"steps": 8}, **form, "bound": bound})
        model = classifier(head=choice.tree())
        phases = choice.module.phases(params.schedules(choice).model_validate(schedule), model, method("natural"), digits["train"])
        optimise.run(model, phases, digits["validation"], lambda: 0.0, (0, "x"), tmp_path / "c.safetensors")
        return model.eval()

    model = trained(BOUND)
    assert lyapunov.gain(model.head.flow.drift) <= BOUND * (1 + 1e-5)
    z = 10 * torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    assert torch.linalg.matrix_norm(model.head.flow.jacobian(z), ord=2).max() <= BOUND * (1 + 1e-5)
    assert stiffness(model.head.flow, z) <= BOUND * 2 / 8 * (1 + 1e-5) < STABILITY_LIMIT["rk4"]
    assert lyapunov.gain(trained(None).head.flow.drift) > BOUND  # so that the bound did something


def test_adversarial_training_end_to_end_keeps_the_constraints(digits):
    model = fit(classifier(head=SODEF | {"bound": BOUND}), digits["train"].take(torch.arange(256)), kind="pgd", steps=2)
    assert lyapunov.gain(model.head.flow.drift).item() == pytest.approx(BOUND)  # it was pushed against it
    P = model.head.projection.weight
    torch.testing.assert_close(P @ P.T, torch.eye(len(P)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_retraction_reaches_the_bound_from_outside_and_leaves_the_inside_alone(layers):
    drift = nn.Sequential(*(nn.Linear(5, 5) for _ in range(layers)))
    for layer in drift:
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(layers))
    norms = [torch.linalg.matrix_norm(layer.weight, ord=2).item() for layer in drift]
    assert lyapunov.gain(drift).item() == pytest.approx(math.prod(norms))
    before = [layer.weight.clone() for layer in drift]
    for bound in (None, 2 * math.prod(norms)):
        lyapunov.contain(drift, bound)
        assert all(torch.equal(layer.weight, own) for layer, own in zip(drift, before))
    lyapunov.contain(drift, 0.5)
    assert lyapunov.gain(drift).item() == pytest.approx(0.5)
    for layer, own in zip(drift, before):  # scaled, not turned
        torch.testing.assert_close(layer.weight / layer.weight.norm(), own / own.norm())


def test_every_eigenvalue_on_the_left_within_2_6_steps_is_inside_rk4s_region():
    """What docs/methods/heads/sodef.md says of h bound: |R| <= 1 on the half disc, R the method's stability function."""
    radius, angle = torch.linspace(0, 2.615, 200, dtype=torch.float64), torch.linspace(math.pi / 2, math.pi, 200, dtype=torch.float64)
    z = torch.polar(*torch.meshgrid(radius, angle, indexing="ij"))
    assert (1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24).abs().max() <= 1 + 1e-12


@pytest.mark.slow
def test_the_sweep_goes_on_where_it_was_and_no_attack_beats_the_worst_case(digits, trained, tmp_path):
    """benchmarks/sodef_sweep.py on a small model: a row for the twin and one a head, the same bytes twice."""
    recipe = trained.recipe | {"threat": {"norm": "linf", "eps": 0.1}}
    artifact.save(tmp_path / "models/small", Classifier(trained.purifier, trained.normalise, trained.backbone, trained.head, recipe))
    prepare(digits_source.read(digits_source.Params()), SplitSettings(), "digits", "digits", 0, tmp_path / "data/prepared")
    words = ["models/small", "--images", "8", "--epochs", "1", "1", "1", "--folder", "out"]

    def swept() -> str:
        subprocess.run(
            [sys.executable, "-m", "benchmarks.sodef_sweep", *words], check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        return (tmp_path / "out/sodef_sweep.md").read_text() + (tmp_path / "out/sodef_sweep.csv").read_text()

    whole = swept()
    for done in list((tmp_path / ".basin").rglob("m-*.json")) + list((tmp_path / ".basin").rglob("classifier-m-10-*")):
        done.unlink()  # as if it had been stopped among the heads of weighting m
    assert swept() == whole
    twin, *heads = csv.DictReader((tmp_path / "out/sodef_sweep.csv").open())
    assert twin["weights"] == "twin" and [(row["weights"], float(row["T"])) for row in heads] == [
        (w, T) for w in "cm" for T in (1, 3, 5, 10)
    ]
    for row in heads:
        assert int(row["worst"]) <= min(int(row[name]) for name in ("clean", "adjoint", "odeint", "fixed", "transfer"))
    assert "python -m benchmarks.sodef_sweep models/small --images 8 --seed 0 --epochs 1 1 1 --solver rk4" in " ".join(whole.split())
