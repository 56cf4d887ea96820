"""How far the trajectory of an adversarial point parts from that of its clean image along a flow, and what theory allows.

    r(t) = ||z~(t) - z(t)|| / ||z~(0) - z(0)||

    r(t) <= e^(L t)               Groenwall; ||f(z~) - f(z)|| <= L ||z~ - z||
    r(t) <= e^(int_0^t m ds)      m = int_0^1 mu(J(z + s (z~ - z))) ds,  mu(J) the largest eigenvalue of (J + J^T) / 2 (Dahlquist 1958)

The first is what the theory of Chu et al. 2020 (arXiv 2012.02452) rests on. Its L is given by the layers where it can be
(models/lipschitz.py): a bound. Elsewhere there is only the largest ||J||_2 met on the way, which is an estimate, from below. The second is
sharper: mu <= ||J||, and may be negative. Its integrals are taken by quadrature at the states that the solver visits, so it is an estimate
as well.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from basin import files
from basin.models import stability
from basin.models.lipschitz import constant
from basin.models.ode import Flow, Start, Times, Trajectory
from basin.types import Images

IMAGES = 64  # of a suite on which flows are measured
TIMES = 16  # intervals of [0, T], at most
WIDEST = 256  # of the states whose Jacobian is written down at each of these times; that of others is left to power iteration
FEW = 16  # pairs of those
EIGENVALUES = 512  # of all images together that are kept, at most


@dataclass(frozen=True)
class Parting:
    """The distances of pairs of trajectories."""

    times: Times
    ratio: Float[Tensor, "times pairs"]  # r(t)
    exponent: Float[Tensor, "times pairs"] | None  # the estimate of int_0^t m ds; None for maps and for wide states
    met: float  # the largest ||J||_2

    def numbers(self) -> dict[str, float]:
        """Ratios at T and their maximum over all times; rates in 1 / time."""
        measures = {"growth_median": self.ratio[-1].quantile(0.5), "growth_max": self.ratio[-1].max(), "growth_peak": self.ratio.max()}
        if self.exponent is not None:
            measures["log_norm_path"] = self.exponent[-1].quantile(0.5) / self.times[-1]
        return {name: value.item() for name, value in measures.items()} | {"lipschitz_met": self.met}


def part(flow: Flow, z: Start, perturbed: Start) -> Parting | None:
    """Follow a flow, in float64, from the rows of z(0) and of z~(0). None where no two of them differ and stay finite."""
    flow = copy.deepcopy(flow).double()
    times = _times(flow).to(z.device)
    clean, other = flow.trajectory(z.double(), times), flow.trajectory(perturbed.double(), times)
    distance = (other - clean).flatten(2).norm(dim=2).cpu()
    pairs = (distance[0] > 0) & distance.isfinite().all(0)
    if not pairs.any():
        return None
    follow = _rates if z.ndim == 2 and z.shape[1] <= WIDEST else _norms
    rates, met = follow(flow, times, clean[:, pairs.to(z.device)], other[:, pairs.to(z.device)])
    times, ratio = times.cpu(), distance[:, pairs] / distance[0, pairs]
    exponent = None if rates is None else torch.cat([torch.zeros_like(rates[:1]), torch.cumulative_trapezoid(rates, times, dim=0)])
    return Parting(times, ratio, exponent, met)


def _times(flow: Flow) -> Times:
    """Ends of the solver's own steps, so that nothing is interpolated."""
    steps = flow.solver.steps
    return torch.linspace(0, steps, min(steps, TIMES) + 1, dtype=torch.float64).round() * (flow.T / steps)


def _rates(flow: Flow, times: Times, clean: Trajectory, other: Trajectory) -> tuple[Float[Tensor, "times pairs"], float]:
    """m, by Simpson's rule from z to z~, and the largest ||J||_2 there."""
    rates, met = [], 0.0
    for t, a, b in zip(times.tolist(), clean, other, strict=True):
        J = flow.jacobian(torch.cat([a, (a + b) / 2, b]), t)
        log_norm = torch.linalg.eigvalsh((J + J.mT) / 2)[:, -1].view(3, -1)
        rates.append((log_norm[0] + 4 * log_norm[1] + log_norm[2]) / 6)
        met = max(met, torch.linalg.eigvalsh(J.mT @ J)[:, -1].max().clamp_min(0).sqrt().item())
    return torch.stack(rates).cpu(), met


def _norms(flow: Flow, times: Times, clean: Trajectory, other: Trajectory) -> tuple[None, float]:
    """The largest ||J||_2 of a few pairs, at the beginning, in the middle and at the end: it costs products with J by the dozen."""
    at = [0, len(times) // 2, len(times) - 1]
    ends = torch.cat([clean[at, :FEW], other[at, :FEW]], 1)
    return None, max(stability.spectral_norm(flow, z, t).max().item() for t, z in zip(times[at].tolist(), ends, strict=True))


def write(folder: Path, classifier: nn.Module, images: Images, points: Images) -> dict[str, float]:
    """folder/stability.json, where the classifier has flows, from the first images and their adversarial points; its numbers.

    The names of the numbers begin with the part that holds the flow, as in `head.growth_median`.
    """
    flows = measure(classifier, images[:IMAGES], points[:IMAGES])
    if flows:
        files.write(folder / "stability.json", (json.dumps({"flows": flows}) + "\n").encode())
    return {f"{flow['flow'].partition('.')[0]}.{name}": value for flow in flows for name, value in flow["numbers"].items()}


def measure(classifier: nn.Module, images: Images, points: Images) -> list[dict[str, Any]]:
    """Each flow at the z(0) of the images, and its trajectories from those that their point moves."""
    device = next(classifier.parameters()).device
    name = {module: path for path, module in classifier.named_modules()}
    clean, perturbed = (stability.starts(classifier, x.to(device)) for x in (images, points))
    return [
        {"flow": name[flow], "T": flow.T, "images": len(z), **_measured(flow, z, other)}
        for (flow, z), (_, other) in zip(clean, perturbed, strict=True)
    ]


def _measured(flow: Flow, z: Start, perturbed: Start) -> dict[str, Any]:
    numbers, spectrum = {"nfe": float(flow.nfe), "stiffness": stability.stiffness(flow, z)}, []
    if z.ndim == 2:
        found = stability.measure(flow, z)
        numbers |= found.numbers()
        spectrum = _thinned(found.spectrum)
    if (L := constant(flow.drift)) is not None:
        numbers["lipschitz"] = L
    if parting := part(flow, z, perturbed):
        numbers |= parting.numbers()
    curves = _curves(parting, L) if parting else None
    return {"numbers": {key: _rounded(value) for key, value in numbers.items()}, "spectrum": spectrum, "trajectories": curves}


def _curves(parting: Parting, L: float | None) -> dict[str, Any]:
    """Quartiles of r(t), and the exponents of what it is held to: r(t) <= e^exponent. An exponent does not overflow."""
    lower, median, upper = parting.ratio.quantile(parting.ratio.new_tensor([0.25, 0.5, 0.75]), dim=1)
    exponents = {} if L is None else {"lipschitz": L * parting.times}
    exponents["lipschitz_met"] = parting.met * parting.times
    if parting.exponent is not None:
        exponents["log_norm"] = parting.exponent.quantile(0.5, dim=1)
    curves = {"times": parting.times, "lower": lower, "median": median, "upper": upper}
    return {"pairs": parting.ratio.shape[1], **_lists(curves), "exponents": _lists(exponents)}


def _lists(curves: dict[str, Tensor]) -> dict[str, list[float]]:
    return {name: [_rounded(value) for value in values.tolist()] for name, values in curves.items()}


def _thinned(spectrum: Tensor) -> list[list[float]]:
    """The upper half, as J is real; evenly spaced in the order of real parts, so that the leftmost and the rightmost are among them."""
    ordered = sorted([_rounded(value.real), _rounded(value.imag)] for value in spectrum.flatten().tolist() if value.imag >= 0)
    kept = torch.linspace(0, len(ordered) - 1, min(len(ordered), EIGENVALUES), dtype=torch.float64).round().int().tolist()
    return [ordered[i] for i in kept]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
