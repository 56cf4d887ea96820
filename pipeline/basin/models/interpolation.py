"""Interpolation of labels on graphs of nearest neighbours: the weighted nonlocal Laplacian (Wang et al., arXiv 1809.08516).

    w(x, y) = exp(-|x - y|^2 / sigma(x)^2) for the k nearest neighbours y of x, else 0; sigma(x) is the distance of the rank-th

For each class, with g = 1 on the template images of that class and 0 on the others, X all points, T the template, gamma = |X| / |T|:

    sum_{y in X} (w(x, y) + w(y, x)) (u(x) - u(y)) + (gamma - 1) sum_{y in T} w(y, x) (u(x) - u(y)) = 0 off T,    u = g on T

One point alone, X = T and it, makes the system one equation:

    u(x) = sum_{y in T} c(x, y) g(y) / sum_{y in T} c(x, y),    c(x, y) = w(x, y) + gamma w(y, x),    gamma = 1 + 1 / |T|

u is a mean of labels: rows sum to one and lie in [0, 1]. All of it is differentiated, sigma included; it jumps where a neighbour changes.
"""

import torch
from torch import Tensor

ISOLATED = 1e-6  # conductance to the mean label, so that a cluster that no template image is near to has a solution
SOFT = 0.1  # the squared width of `dense`, as a share of the mean squared distance
TINY = 1e-12  # the least sigma^2: rank template images on the same spot
Neighbours = tuple[Tensor, Tensor]


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """[..., d], [..., d] -> [...], point by point."""
    return (a - b).square().sum(-1)


def weights(d2: Tensor, sigma2: Tensor) -> Tensor:
    """exp(-d^2 / sigma^2)."""
    return (-d2 / sigma2.clamp_min(TINY)).exp()


@torch.no_grad()
def neighbours(x: Tensor, k: int) -> Neighbours:
    """Distances and numbers [n, k] of the k nearest other points of x [n, d], rising; infinite where there are only k points."""
    distances, index = torch.cdist(x, x).fill_diagonal_(torch.inf).topk(k, largest=False)
    return distances, index


def alone(x: Tensor, t: Tensor, g: Tensor, rank: int, within: Neighbours) -> Tensor:
    """u [n, classes] of each point of x [n, d] alone beside the template t [M, d] with labels g [M, classes] and `neighbours` of its own.

    Beside x, a template image y keeps its neighbours but for the k-th if x is nearer, and x may take the place of its rank-th.
    """
    own, near = within
    with torch.no_grad():  # who is whose neighbour is constant between two jumps
        distances = torch.cdist(x, t)
        to = distances.topk(own.shape[1], largest=False).indices
        i, j = (distances < own[:, -1]).nonzero(as_tuple=True)
    d2 = squared_distances(x[:, None], t[to])
    c = (weights(d2, d2[:, rank - 1, None])[..., None] * g[to]).sum(1)
    d2 = squared_distances(x[i], t[j])
    at = squared_distances(t, t[near[:, rank - 1]]).masked_fill(own[:, rank - 1].isinf(), torch.inf)
    before = squared_distances(t, t[near[:, rank - 2]]) if rank > 1 else torch.zeros_like(at)
    back = weights(d2, d2.clamp(before[j], at[j]))
    c = c.index_add(0, i, (1 + 1 / len(t)) * back[:, None] * g[j])
    return c / c.sum(1, keepdim=True)


def graph(x: Tensor, k: int, rank: int) -> Tensor:
    """[N, d] -> [N, N]: w(x, y), from row to column."""
    to = neighbours(x, k)[1]
    d2 = squared_distances(x[:, None], x[to])
    return x.new_zeros(len(x), len(x)).scatter(1, to, weights(d2, d2[:, rank - 1, None]))


def harmonic(w: Tensor, g: Tensor) -> Tensor:
    """u [N - M, classes] off the template, the first M points of the graph w [N, N], whose labels g [M, classes] are given."""
    N, M = len(w), len(g)
    to = w[M:, :M] + N / M * w[:M, M:].T
    among = w[M:, M:] + w[M:, M:].T
    L = torch.diag(to.sum(1) + among.sum(1) + ISOLATED) - among
    return torch.linalg.solve(L, to @ g + ISOLATED * g.mean(0))


def dense(x: Tensor, t: Tensor, g: Tensor) -> Tensor:
    """[n, classes]: a mean over all of the template, in which no label weighs so little that the gradient vanishes."""
    d2 = x.square().sum(1)[:, None] + t.square().sum(1) - 2 * x @ t.T
    return (-d2 / (SOFT * d2.mean(1, keepdim=True)).clamp_min(TINY)).softmax(1) @ g
