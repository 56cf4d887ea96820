"""The solver and the stability numbers, held to flows whose solutions, gradients and spectra are known."""

import math

import pytest
import torch
import torchdiffeq
from problems import PROBLEMS, Drift, Problem
from torch import Tensor, nn

from basin.config.solver import Solver
from basin.errors import Mistake
from basin.methods.heads.sodef import SineDrift
from basin.models.classifier import Classifier
from basin.models.ode import STABILITY_LIMIT, Flow, exactly, flows, solving_with
from basin.models.stability import is_unstable, starts, stiffness
from basin.randomness import Random, drawing, generator

ORDERS = {"euler": 1, "midpoint": 2, "rk4": 4}
STAGES = {"euler": 1, "midpoint": 2, "rk4": 4}
problems = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)


def error(problem: Problem, T: float, solver: Solver) -> float:
    return (Flow(Drift(problem.f), T, solver)(problem.z0) - problem.solution(T)).abs().max().item()


@problems
@pytest.mark.parametrize("method", ORDERS)
def test_the_observed_order_is_the_claimed_one(problem, method):
    steps = 16 if method == "rk4" else 256
    coarse, fine = (error(problem, 1.5, Solver(method=method, steps=n)) for n in (steps, 2 * steps))
    assert math.log2(coarse / fine) == pytest.approx(ORDERS[method], abs=0.15)


@problems
def test_the_adaptive_solver_keeps_its_tolerance(problem):
    for tolerance in (1e-3, 1e-6, 1e-9):
        assert error(problem, 1.5, Solver(method="dopri5", tolerance=tolerance)) < 30 * tolerance


@pytest.mark.parametrize("method", ORDERS)
def test_steps_are_equal_and_as_many_as_asked(method):
    """dz/dt = 1 costs nothing to solve, so what is counted is the work alone; T is met exactly."""
    flow = Flow(Drift(torch.ones_like), 2.5, Solver(method=method, steps=7))
    assert torch.allclose(flow(torch.zeros(1, 1, dtype=torch.float64)), torch.tensor(2.5, dtype=torch.float64), atol=1e-14)
    assert flow.nfe == 7 * STAGES[method]
    flow(torch.zeros(1, 1))
    assert flow.nfe == 7 * STAGES[method]  # of the last solve, not the sum


# Gradients --------------------------------------------------------------------------------------------------------------------------------


@problems
@pytest.mark.parametrize("method", ORDERS)
def test_the_exact_gradient_is_that_of_finite_differences(problem, method):
    flow = Flow(Drift(problem.f), 1.0, Solver(method=method, steps=6))
    assert torch.autograd.gradcheck(flow, problem.z0.clone().requires_grad_())


def test_the_exact_gradient_of_the_parameters_is_that_of_finite_differences():
    drift = sine(1.0, 3, seed=0)
    flow = Flow(drift, 1.0, Solver(steps=6))
    z0 = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def solved(weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(flow, {"drift.linear.weight": weight, "drift.linear.bias": bias}, z0)

    assert torch.autograd.gradcheck(solved, (drift.linear.weight, drift.linear.bias))


def sine(rate: float, d: int, seed: int) -> SineDrift:
    """SODEF's drift, sin(-(W z)), W near rate x identity: it contracts at about that rate."""
    drift = SineDrift(d).double()
    noise = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        drift.linear.weight.copy_(rate * torch.eye(d) + 0.1 * noise)
        drift.linear.bias.zero_()
    return drift


def gradient(flow: Flow, solver: Solver, z0: Tensor, along: Tensor) -> Tensor:
    """d (along . z(T)) / d z(0)."""
    z0 = z0.clone().requires_grad_()
    with solving_with(flow, solver):
        return torch.autograd.grad((flow(z0) * along).sum(), z0)[0]


def test_on_a_contracting_flow_the_adjoint_gradient_is_wrong_and_the_exact_one_right():
    """The adjoint follows z backwards from z(T), where a contraction is explosive (docs/decisions/0005)."""
    flow = Flow(sine(2.0, 16, seed=0), 5.0, Solver())
    draw = torch.Generator().manual_seed(1)
    z0, along = (torch.randn(32, 16, generator=draw, dtype=torch.float64) for _ in range(2))
    reference = gradient(flow, Solver(method="dopri5", tolerance=1e-10), z0, along)

    def cosine(solver: Solver) -> float:
        return torch.cosine_similarity(gradient(flow, solver, z0, along).flatten(), reference.flatten(), 0).item()

    assert cosine(Solver(method="rk4", steps=64)) > 0.99
    assert cosine(Solver(method="dopri5", tolerance=1e-3)) > 0.99
    assert cosine(Solver(method="dopri5", tolerance=1e-3, gradient="adjoint")) < 0.9


def test_on_a_gentle_flow_the_adjoint_gradient_is_right():
    """So what the test above finds is the contraction, not a mistake in how the adjoint is called."""
    flow = Flow(sine(0.5, 16, seed=0), 1.0, Solver())
    draw = torch.Generator().manual_seed(1)
    z0, along = (torch.randn(32, 16, generator=draw, dtype=torch.float64) for _ in range(2))
    exact, adjoint = (gradient(flow, Solver(method="dopri5", tolerance=1e-8, gradient=name), z0, along) for name in ("exact", "adjoint"))
    torch.testing.assert_close(adjoint, exact, rtol=1e-4, atol=1e-6)


def test_the_adjoint_works_where_parameters_are_frozen():
    """As in an attack."""
    flow = Flow(sine(0.5, 4, seed=0).requires_grad_(False), 1.0, Solver(method="dopri5", gradient="adjoint"))
    z0 = torch.ones(2, 4, dtype=torch.float64)
    assert gradient(flow, flow.solver, z0, z0).abs().min() > 0


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_an_adjoint_solve_can_be_differentiated_through_its_steps(method):
    """Whoever calls it; the solution does not change, and afterwards the adjoint is back, even after an error."""
    drift = sine(2.0, 3, seed=0)
    z0 = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)

    def solved(gradient):
        z = Flow(drift, 2.0, Solver(method=method, gradient=gradient))(z0)
        return z, torch.autograd.grad(z.sum(), z0)[0]

    plain, adjoint = solved("exact"), solved("adjoint")
    with pytest.raises(RuntimeError, match="stop"), exactly() as methods:
        through = solved("adjoint")
        raise RuntimeError("stop")
    assert methods == [method]
    torch.testing.assert_close(through, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(solved("adjoint")[1], adjoint[1], rtol=1e-12, atol=1e-12)
    assert (adjoint[1] - plain[1]).abs().max() > 1e-9


def test_a_swapped_solver_is_put_back_even_after_an_error():
    flow = Flow(Drift(torch.neg), 1.0, own := Solver())
    with pytest.raises(ZeroDivisionError), solving_with(nn.Sequential(flow), Solver(method="euler")):
        assert flow.solver.method == "euler"
        raise ZeroDivisionError
    assert flow.solver is own


# Against torchdiffeq ----------------------------------------------------------------------------------------------------------------------


class Timed(nn.Module):
    """f(t, z) = cos(t) tanh(W z)."""

    def __init__(self, d: int):
        super().__init__()
        self.linear = sine(1.0, d, seed=5).linear

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return t.cos() * self.linear(z).tanh()


def by_torchdiffeq(flow: Flow, z0: Tensor, times: Tensor) -> Tensor:
    grid = torch.linspace(0, flow.T, flow.solver.steps + 1, dtype=z0.dtype)
    options = {"grid_constructor": lambda *_: grid}
    return torchdiffeq.odeint(lambda t, z: flow.rate(t, z), z0, times, method=flow.solver.method, options=options)


@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize("autonomous", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_steps_are_torchdiffeqs_forward_and_backward(method, autonomous, dtype, tolerance):
    drift = (sine(1.0, 6, seed=4) if autonomous else Timed(6)).to(dtype)
    flow = Flow(drift, 3.0, Solver(method=method, steps=12), autonomous)
    draw = torch.Generator().manual_seed(2)
    z0, along = (torch.randn(5, 6, generator=draw, dtype=torch.float64).to(dtype) for _ in range(2))
    z0.requires_grad_()
    times = torch.tensor([0.0, 0.25, 1.3, 2.9, 3.0], dtype=dtype)
    theirs = by_torchdiffeq(flow, z0, times)
    torch.testing.assert_close(flow.trajectory(z0, times), theirs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(flow(z0), theirs[-1], rtol=tolerance, atol=tolerance)
    inputs = [z0, *drift.parameters()]
    gradients = [torch.autograd.grad((zT * along).sum(), inputs) for zT in (flow(z0), theirs[-1])]
    torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)


def test_every_evaluation_is_counted():
    seen: list[Tensor] = []
    flow = Flow(Drift(lambda z: (seen.append(z), -z)[1]), 1.0, Solver())
    for method in (*ORDERS, "dopri5"):
        seen.clear()
        with solving_with(flow, Solver(method=method, steps=5)):
            flow(torch.ones(1, 1))
        assert flow.nfe == len(seen) > 0


# Memory -----------------------------------------------------------------------------------------------------------------------------------


def most_kept(flow: Flow, z0: Tensor) -> int:
    """The most bytes that autograd held at once for a solve and its gradient."""
    now = most = 0

    class Held:
        def __init__(self, tensor: Tensor):
            nonlocal now, most
            self.tensor, now = tensor, now + tensor.nbytes
            most = max(most, now)

        def __del__(self):
            nonlocal now
            now -= self.tensor.nbytes

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        flow(z0).sum().backward()
    assert now == 0
    return most


@pytest.mark.parametrize("method", ORDERS)
def test_recomputing_gives_the_same_gradient(method):
    flow = Flow(sine(1.0, 4, seed=0), 2.0, Solver())
    z0 = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    found = []
    for recompute in (False, True):
        with solving_with(flow, Solver(method=method, steps=11, recompute=recompute)):
            zT = flow(z0)
        assert flow.nfe == 11 * STAGES[method]
        found.append((zT, *torch.autograd.grad(zT.square().sum(), [z0, *flow.parameters()])))  # with another solver in place by now
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_recomputing_keeps_the_root_of_the_steps():
    z0 = torch.ones(8, 16, dtype=torch.float64, requires_grad=True)
    kept = {
        (steps, recompute): most_kept(Flow(sine(1.0, 16, seed=0), 1.0, Solver(steps=steps, recompute=recompute)), z0)
        for steps in (64, 256)
        for recompute in (False, True)
    }
    assert kept[256, False] > 3.5 * kept[64, False]
    assert kept[64, True] < kept[64, False] / 4 and kept[256, True] < kept[256, False] / 8
    assert kept[256, True] < 2.2 * kept[64, True]


class Noisy(Random):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3).double()

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z) * self.normal(z.shape, z)


def test_recomputing_draws_the_same_again_and_moves_no_generator():
    """Two layers that draw in turn from one generator, in a call whose parameters are given to it for this one time."""
    flow = Flow(nn.Sequential(Noisy(), Noisy()), 1.0, Solver())
    z0 = torch.ones(2, 3, dtype=torch.float64)
    given = {name: (p.detach() + 1).requires_grad_() for name, p in flow.named_parameters()}
    found, after = [], []
    for recompute in (False, True):
        draws = generator(0, "test")
        with solving_with(flow, Solver(steps=9, recompute=recompute)), drawing(flow, draws):
            zT = torch.func.functional_call(flow, given, z0)
        found.append((zT, *torch.autograd.grad(zT.sum(), given.values(), retain_graph=True)))
        torch.testing.assert_close(torch.autograd.grad(zT.sum(), given.values()), found[-1][1:], rtol=0, atol=0)
        after.append(torch.rand(1, generator=draws))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    assert torch.equal(*after)


def test_a_second_derivative_through_recomputed_steps_is_refused_not_wrong():
    z0 = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    flow = Flow(sine(1.0, 4, seed=0), 1.0, Solver(recompute=True))
    (g,) = torch.autograd.grad(flow(z0).square().sum(), z0, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


# Stability --------------------------------------------------------------------------------------------------------------------------------


def test_the_jacobian_is_that_of_the_drift():
    """J[b, i, j] = d f_i / d z_j of sin(-(W z)) is -cos(W z)_i W_ij."""
    drift = sine(1.0, 5, seed=3)
    z = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    W = drift.linear.weight
    by_hand = -torch.cos(z @ W.T)[:, :, None] * W
    torch.testing.assert_close(Flow(drift, 1.0, Solver()).jacobian(z), by_hand)


def test_a_tolerance_that_float32_cannot_keep_is_refused():
    flow = Flow(Drift(torch.neg), 1.0, Solver(method="dopri5", tolerance=1e-14))
    with pytest.raises(Mistake, match=r"^solver\.tolerance: no step keeps it in float32 \(got 1e-14\)\. Give 1\.2e-07 or more\.$"):
        flow(torch.ones(1, 2))


def test_stiffness_is_the_step_times_the_largest_eigenvalue():
    """Eigenvalues -1, -6 and -3 +- 4i (modulus 5) by construction, in a basis that is not orthogonal."""
    block = torch.tensor([[-1.0, 0, 0, 0], [0, -6.0, 0, 0], [0, 0, -3.0, 4.0], [0, 0, -4.0, -3.0]], dtype=torch.float64)
    basis = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    A = basis @ block @ basis.inverse()
    flow = Flow(Drift(lambda z: z @ A.T), 5.0, Solver(steps=10))
    assert stiffness(flow, torch.zeros(3, 4, dtype=torch.float64)) == pytest.approx(6 * 5.0 / 10)


@pytest.mark.parametrize("method", ORDERS)
def test_beyond_the_stability_limit_a_solve_explodes_and_within_it_decays(method):
    """dz/dt = -lambda z, h lambda just inside and just outside: the table of limits is that of the methods."""
    for share, decays in ((0.98, True), (1.02, False)):
        rate = share * STABILITY_LIMIT[method]
        flow = Flow(Drift(lambda z, rate=rate: -rate * z), 400.0, Solver(method=method, steps=400))
        z0 = torch.ones(1, 1, dtype=torch.float64)
        assert is_unstable(flow, stiffness(flow, z0)) is not decays
        assert (flow(z0).abs().item() < 1) is decays


def test_an_adaptive_solver_is_never_called_unstable():
    flow = Flow(Drift(lambda z: -100 * z), 1.0, Solver(method="dopri5", steps=1))
    assert not is_unstable(flow, 100.0)


def test_a_flow_starts_at_the_state_of_the_images():
    """`starts` sees z(0) of each flow, whatever stands before it."""
    doubled = Flow(Drift(torch.neg), 1.0, Solver(steps=5))
    model = Classifier(nn.Identity(), nn.Identity(), nn.Flatten(), nn.Sequential(Drift(lambda z: 2 * z), doubled), {})
    images = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    ((flow, z0),) = starts(model, images)
    assert flow is doubled is flows(model)[0] and flow.nfe == 20
    assert torch.equal(z0, 2 * images.flatten(1))
    assert not doubled._forward_pre_hooks
