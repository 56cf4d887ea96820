"""HopSkipJump (Chen, Jordan & Wainwright 2020, arXiv 1904.02144). Black-box, decisions only: neither gradient nor scores. Many queries.

It goes along the decision boundary towards the clean image x, as the Boundary Attack does (Brendel et al. 2018, arXiv 1712.04248), but
instead of walking at random it estimates the boundary's normal from queries around a point on it. phi is 1 where a point is
misclassified, -1 where not.

    x_k  = the nearest point to x that bisection finds misclassified between y_k and x; y_0 is a random image, coarse or fine
    v_k  ~ sum_b (phi(x_k + delta_k u_b) - mean phi) u_b,    u_b uniform on the sphere,    delta_k = |x_k - x| / dim
    y_{k+1} = x_k + xi v_k,    xi = |x_k - x| / sqrt(k), halved until misclassified;    v_k has norm 1, or is a sign in L-infinity

An image that is broken inside the ball is queried no further.
"""

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from basin.config.settings import Settings
from basin.threat.ball import HIGH, LOW
from basin.threat.target import Target, misread
from basin.types import Images, Labels, PerImage

BLACK_BOX = True
FIRST_DELTA = 0.1  # the paper's delta_1, in pixels


class Params(Settings):
    queries: int = Field(5000, ge=1, description="a positive number of queries an image, after which no further step begins")
    draws: int = Field(100, ge=2, description="queries for the first normal, at least 2; the k-th gets sqrt(k) times as many")
    starts: int = Field(50, ge=1, description="a positive number of random images tried for a first misclassified point")


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    threat, best = target.threat, target.incumbent(images)
    x, found = _start(params, target, images, labels, generator)
    k, spent = 0, params.starts
    while spent < params.queries:
        rows = (found & (threat.distance(x, images) > threat.eps)).nonzero().flatten()
        if not len(rows):
            break
        k, draws = k + 1, math.ceil(params.draws * math.sqrt(k + 1))
        x[rows], asked = _step(target, x[rows], images[rows], labels[rows], k, draws, generator)
        spent += draws + asked
    for candidate in (images, threat.project(x, images)):
        with torch.no_grad():
            best.offer(candidate, target.network(candidate), labels)
    return best.points


def _step(target: Target, x: Images, clean: Images, labels: Labels, k: int, draws: int, generator: torch.Generator) -> tuple[Images, int]:
    """(x_{k+1}, queries an image) from x_k."""
    threat, d = target.threat, target.threat.distance(x, clean)
    delta = torch.full_like(d, FIRST_DELTA) if k == 1 else d / clean[0].numel()
    v = threat.steepest(_normal(target, x, labels, column(delta), draws, generator), x)
    xi, y, asked = d / math.sqrt(k), x.clone(), 0
    left = torch.arange(len(x), device=x.device)
    while len(left) and asked < 20:  # a step of d / 2^20 is none
        candidate = (x[left] + column(xi[left]) * v[left]).clamp(LOW, HIGH)
        taken = misclassified(target, candidate, labels[left])
        y[left[taken]], left, xi, asked = candidate[taken], left[~taken], xi / 2, asked + 1
    halvings = math.ceil(2 * math.log2(clean[0].numel()))  # to the paper's theta = 1 / dim^2 in L-infinity, more than that in L2
    return _bisect(target, y, clean, labels, halvings), asked + halvings


def _normal(target: Target, x: Images, labels: Labels, delta: Tensor, draws: int, generator: torch.Generator) -> Images:
    """The direction into the misclassified side, estimated from decisions."""
    weighted, total, score = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(delta)
    for _ in range(draws):
        u = normalize(torch.randn(x.shape, generator=generator, device=x.device).flatten(1)).view_as(x)
        there = (x + delta * u).clamp(LOW, HIGH)
        u, phi = (there - x) / delta, column(2.0 * misclassified(target, there, labels) - 1)
        weighted, total, score = weighted + phi * u, total + u, score + phi
    one_sided = score.abs() == draws  # then the mean would cancel everything
    return weighted - torch.where(one_sided, 0.0, score / draws) * total


def _start(params: Params, target: Target, clean: Images, labels: Labels, generator: torch.Generator) -> tuple[Images, Tensor]:
    """(misclassified points between random images and the clean ones, which images have one). The others stay clean."""
    x, found = clean.clone(), misclassified(target, clean, labels)
    c, h, w = clean.shape[1:]
    for attempt in range(params.starts):
        rows = (~found).nonzero().flatten()
        if not len(rows):
            break
        side = 2 ** (attempt % max(h, w).bit_length())
        noise = LOW + (HIGH - LOW) * torch.rand((len(rows), c, side, side), generator=generator, device=clean.device)
        noise = interpolate(noise, (h, w))
        taken = misclassified(target, noise, labels[rows])
        x[rows[taken]], found[rows[taken]] = noise[taken], True
    return _bisect(target, x, clean, labels, 12), found


def _bisect(target: Target, y: Images, clean: Images, labels: Labels, halvings: int) -> Images:
    """The nearest misclassified point to the clean image on the way there from `y`, which is misclassified."""
    threat, x = target.threat, y.clone()
    low, high = torch.zeros(len(y), device=y.device), threat.distance(y, clean)
    for _ in range(halvings):
        r = (low + high) / 2
        candidate = threat.model_copy(update={"eps": column(r)}).project(y, clean)  # a radius for each image
        taken = misclassified(target, candidate, labels)
        x[taken], low, high = candidate[taken], torch.where(taken, low, r), torch.where(taken, r, high)
    return x


@torch.no_grad()
def misclassified(target: Target, x: Images, labels: Labels) -> Tensor:
    """The one thing that is asked of the network."""
    return misread(target.network(x), labels)


def column(values: PerImage) -> Tensor:
    return values.view(-1, 1, 1, 1)
