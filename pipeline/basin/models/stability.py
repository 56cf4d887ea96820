"""What can be measured of a classifier's flows at the z(0) of given images, and what it says of their stability."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex
from torch import Tensor, nn

from basin.errors import Mistake
from basin.models.ode import STABILITY_LIMIT, Flow, Start, flows
from basin.randomness import drawing, generator
from basin.types import Images, PerImage, State

ITERATIONS = 40  # of the power iteration; the first half lets the largest eigenvalue come forward, the second is measured


def starts(classifier: nn.Module, images: Images) -> list[tuple[Flow, Start]]:
    """Each flow inside the classifier with its z(0) for these images; `nfe` of each flow is that of this solve.

    Of a randomised classifier it is one pass, whose draws are the same at every call.
    """
    seen: list[tuple[Flow, Start]] = []
    hooks = [flow.register_forward_pre_hook(lambda flow, z: seen.append((flow, z[0].detach()))) for flow in flows(classifier)]
    if not hooks:
        return seen
    try:
        with torch.no_grad(), drawing(classifier, generator(0, "starts", device=images.device)):
            getattr(classifier, "single", classifier)(images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@dataclass(frozen=True)
class Stability:
    """A flow of vectors at the z(0) of n images. J = df/dz there, at t = 0.

    A negative and strictly dominant diagonal, of rows or of columns, puts all eigenvalues into the left half-plane (Levy-Desplanques),
    and that makes an equilibrium asymptotically stable; z(0) is one where `speed` is 0. `log_norm` bounds how fast two nearby
    trajectories part at first: below 0 the flow contracts there, which eigenvalues alone do not say where J is not normal.
    """

    spectrum: Complex[Tensor, "n d"]  # the eigenvalues of J
    log_norm: PerImage  # the largest eigenvalue of (J + J^T) / 2
    row_dominant: Bool[Tensor, " n"]  # |J_ii| > sum_{j != i} |J_ij| for all i, as in the SODEF paper
    column_dominant: Bool[Tensor, " n"]  # |J_jj| > sum_{i != j} |J_ij| for all j, as in its released code
    speed: PerImage  # ||f(z(0))||_2

    def numbers(self) -> dict[str, float]:
        """The measures over all images: shares in [0, 1], rates in 1 / time."""
        rightmost = self.spectrum.real.amax(1)
        measures = {
            "left_half_plane": (rightmost < 0).double().mean(),
            "rightmost_median": rightmost.median(),
            "rightmost_max": rightmost.max(),
            "log_norm_median": self.log_norm.median(),
            "log_norm_max": self.log_norm.max(),
            "row_dominant": self.row_dominant.double().mean(),
            "column_dominant": self.column_dominant.double().mean(),
            "speed": self.speed.mean(),
        }
        return {name: value.item() for name, value in measures.items()}


def measure(flow: Flow, z0: State) -> Stability:
    """The stability of a flow at the rows of z0, computed in float64 from its Jacobians. Raises Mistake where one is not finite."""
    J = flow.jacobian(z0).detach().cpu().double()
    if not J.isfinite().all():
        raise Mistake("flow: its Jacobian is not finite (got inf or nan at the images looked at). Lower schedule.rate, or shorten T.")
    size, diagonal = J.abs(), J.diagonal(dim1=1, dim2=2).abs()
    return Stability(
        spectrum=torch.linalg.eigvals(J),
        log_norm=torch.linalg.eigvalsh((J + J.mT) / 2)[:, -1],
        row_dominant=(2 * diagonal > size.sum(2)).all(1),
        column_dominant=(2 * diagonal > size.sum(1)).all(1),
        speed=flow.rate(0.0, z0).detach().cpu().double().norm(dim=1),
    )


def stiffness(flow: Flow, z0: Start) -> float:
    """h |lambda|_max of the drift's Jacobian at t = 0 over the rows of z0, h the fixed step. Exact for vectors, near it for maps."""
    if z0.ndim == 2:
        J = flow.jacobian(z0).detach().cpu()
        largest = torch.linalg.eigvals(J).abs() if J.isfinite().all() else J.new_full((1,), math.inf)  # of which LAPACK dies
    else:
        largest = spectral_radius(flow, z0)
    return largest.max().item() * flow.T / flow.solver.steps


def spectral_radius(flow: Flow, z0: Start) -> PerImage:
    """|lambda|_max at each row, for maps, whose Jacobian is too large to write down.

    Iterates J^T, which has the eigenvalues of J and costs one backward pass.
    """
    return _power_iteration(_products(flow, z0, 0.0)[0], z0)


def spectral_norm(flow: Flow, z: Start, t: float = 0.0) -> PerImage:
    """||J||_2 at time t at each row, for maps: the root of the largest eigenvalue of J^T J, from below."""
    pull, push = _products(flow, z, t)
    return _power_iteration(lambda v: pull(push(v)), z).sqrt()


def _products(flow: Flow, z: Start, t: float) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """v -> J^T v and v -> J v at time t at each row. The second is the derivative of the first, which is linear, along v: torch.func,
    which has both, loads torch's compiler."""
    with torch.enable_grad():
        z, u = z.detach().requires_grad_(), torch.zeros_like(z, requires_grad=True)
        out = flow.rate(t, z)
        (pulled,) = torch.autograd.grad((out * u).sum(), z, create_graph=True)

    def of(output: Tensor, to: Tensor) -> Callable[[Tensor], Tensor]:
        def product(v: Tensor) -> Tensor:
            with torch.enable_grad():
                return torch.autograd.grad((output * v).sum(), to, retain_graph=True)[0]

        return product

    return of(out, z), of(pulled, u)


def _power_iteration(product: Callable[[Tensor], Tensor], like: Start) -> PerImage:
    """The growth of each row under repeated products with its matrix.

    The growth of a step swings where the largest eigenvalue is one of a complex pair, so its geometric mean over the second half of the
    iterations is taken.
    """
    start = generator(0, "power iteration", device=like.device)
    v = torch.randn(like.shape, generator=start, dtype=like.dtype, device=like.device)
    growth = []
    for _ in range(ITERATIONS):
        v = product(v).detach()
        norm = v.flatten(1).norm(dim=1).clamp_min(torch.finfo(v.dtype).tiny)
        v = v / norm.view(-1, *[1] * (v.ndim - 1))
        growth.append(norm.log())
    return torch.stack(growth[ITERATIONS // 2 :]).mean(0).exp()


def is_unstable(flow: Flow, stiffness: float) -> bool:
    """Whether the step lies outside its method's stability region on the negative real axis; an adaptive solver chooses its own."""
    return flow.solver.fixed_step and stiffness > STABILITY_LIMIT[flow.solver.method]
