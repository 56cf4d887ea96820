"""Auto-PGD (Croce & Hein 2020, arXiv 2003.01690, Algorithm 1). White-box, parameter-free, about steps x restarts (x targets) gradients.

    z_{k+1} = P(x_k + eta_k s(grad f(x_k)))
    x_{k+1} = P(x_k + alpha (z_{k+1} - x_k) + (1 - alpha) (x_k - x_{k-1}))        alpha = 0.75, eta_0 = 2 eps

At checkpoints w_j the step is halved and the search goes back to its best point, where the loss rose in fewer than rho of the last
steps, or neither step nor best loss changed since the checkpoint before. s is the sign in L-infinity, g / ||g|| in L2.

L1 (Croce & Hein 2021, arXiv 2103.01208, Algorithm 1): balls of radius r = 3 eps, 2 eps, eps follow one another, and in each

    x_{k+1} = P_r(x_k + eta_k s_k)        s_k the signs of the largest K_k pixels of grad f(x_k), over K_k; K_0 = d / 5, eta_0 = r

Every few steps K becomes ||x_max - x||_0 / 1.5. Where x_max has lost a twentieth of its pixels since then, the search goes back to it with
eta = r; elsewhere eta is divided by 1.5, down to r / 10.

Targets are tried likeliest first, or nearest first (MALT: `others` in basin/threat/target.py).
Losses: `ce`; `dlr` and `dlr_targeted` (equations 6 and 7), which do not change when the logits are scaled, and on fewer classes than they
need `margin` and `margin_targeted`, their numerators, which do not saturate either: of a scaled gradient s takes the direction.
"""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from basin.config.settings import Settings
from basin.threat import l1
from basin.threat.ball import ThreatModel
from basin.threat.target import Incumbent, Target, beside, cross_entropy_each, gradient, margin, margin_targeted, others
from basin.types import Images, Labels, PerImage

SEARCHES = True
ALPHA, RHO = 0.75, 0.75
RADII = ((3, 0.3), (2, 0.3), (1, 0.4))  # in L1: of each ball the radius, in those asked for, and the share of the steps
SPARSER, FEWER_PIXELS, SHORTEST, EVERY = 1.5, 0.95, 10, 0.04  # of its rule


class Params(Settings):
    loss: Literal["ce", "dlr", "dlr_targeted", "margin", "margin_targeted"] = Field(
        "ce", description="ce, dlr, dlr_targeted, margin, or margin_targeted"
    )
    steps: int = Field(100, ge=2, description="steps of each run, at least 2 (the paper: 100)")
    restarts: int = Field(1, ge=1, description="a positive number of runs from random points")
    targets: int = Field(9, ge=1, description="a positive number of target classes; the targeted losses alone use it")
    order: Literal["likeliest", "nearest"] = Field(
        "likeliest", description="which targets are first: likeliest, or nearest (MALT, a gradient for each of 100 classes at most)"
    )


FEWER = {"dlr": (3, "margin"), "dlr_targeted": (4, "margin_targeted")}  # the classes that a loss needs, and what is taken on fewer


def fitted(params: Params, classes: int, randomised: bool = False) -> Params:
    """With a loss that is defined on so many classes."""
    needed, instead = FEWER.get(params.loss, (2, params.loss))
    return params.model_copy(update={"loss": instead}) if classes < needed else params


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    """The best point over restarts and target classes; an image that is broken is not attacked further."""
    best = target.incumbent(images)
    with torch.no_grad():
        logits = target.network(images)
    params = fitted(params, logits.shape[1])
    best.offer(images, logits, labels)
    run = _run_l1 if target.threat.norm == "l1" else _run
    left = [loss for loss in _losses(params, target, images, logits, labels) for _ in range(params.restarts)]
    while left and len(rows := (~best.broken).nonzero().flatten()):
        n = min(target.abreast(len(rows)), len(left))
        loss, x, y = beside([loss(rows) for loss in left[:n]]), images[rows].repeat(n, 1, 1, 1), labels[rows].repeat(n)
        run(params.steps, loss, target, x, y, generator, best, rows, n)
        left = left[n:]
    return best.points


def _losses(
    params: Params, target: Target, images: Images, logits: Tensor, labels: Labels
) -> list[Callable[[Tensor], Callable[[Tensor, Labels], PerImage]]]:
    """For each run, rows -> the loss to raise on them."""
    if untargeted := {"ce": cross_entropy_each, "dlr": dlr, "margin": lambda z, y: -margin(z, y)}.get(params.loss):
        return [lambda rows: untargeted]
    loss = {"dlr_targeted": dlr_targeted, "margin_targeted": margin_targeted}[params.loss]
    towards = others(target, images, labels, logits, params.order == "nearest").T[: params.targets]
    return [lambda rows, t=t: lambda z, y: loss(z, y, t[rows]) for t in towards]  # type: ignore[misc]


def dlr(z: Tensor, y: Labels) -> PerImage:
    """-(z_y - max_{i != y} z_i) / (z_pi1 - z_pi3), pi sorting z downwards (equation 6)."""
    top = z.sort(1, descending=True).values
    return -margin(z, y) / (top[:, 0] - top[:, 2] + 1e-12)


def dlr_targeted(z: Tensor, y: Labels, t: Labels) -> PerImage:
    """-(z_y - z_t) / (z_pi1 - (z_pi3 + z_pi4) / 2) (equation 7)."""
    top = z.sort(1, descending=True).values
    return margin_targeted(z, y, t) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def checkpoints(steps: int) -> list[int]:
    """w_j = ceil(p_j steps), p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06).

    In hundredths, because sums of floats are not exact and ceil is not forgiving.
    """
    p = [0, 22]
    while p[-1] < 100:
        p.append(p[-1] + max(p[-1] - p[-2] - 3, 6))
    return sorted({-(-share * steps // 100) for share in p[1:] if share < 100})


def _run(
    steps: int,
    loss: Callable[[Tensor, Labels], PerImage],
    target: Target,
    clean: Images,
    labels: Labels,
    generator: torch.Generator,
    best: Incumbent,
    rows: Tensor,
    runs: int,
) -> None:
    """So many runs of Algorithm 1 abreast, on the images `clean`; every iterate is offered to `best`."""
    threat, n, onto = target.threat, len(clean), target.threat.onto(clean)
    column = (n,) + (1,) * (clean.ndim - 1)
    x = previous = threat.random_point(clean, generator)
    g, f, logits = gradient(target.network, x, labels, loss)
    best.offer(x, logits, labels, rows, runs)
    x_max, g_max, f_max = x.clone(), g.clone(), f.clone()
    eta = torch.full((n,), 2 * threat.eps, device=clean.device)
    rises = torch.zeros(n, device=clean.device)
    eta_before, f_before, last = eta.clone(), f_max.clone(), 0
    marks = set(checkpoints(steps))
    for k in range(1, steps + 1):
        alpha = ALPHA if k > 1 else 1.0
        z = onto(x + eta.view(column) * threat.steepest(g))
        x, previous = onto((z - x).mul_(alpha).add_(x).add_((x - previous).mul_(1 - alpha))), x
        f_previous = f
        g, f, logits = gradient(target.network, x, labels, loss)
        best.offer(x, logits, labels, rows, runs)
        rises += f > f_previous
        up = (f > f_max).view(column)
        torch.where(up, x, x_max, out=x_max), torch.where(up, g, g_max, out=g_max), torch.maximum(f, f_max, out=f_max)
        if k in marks:
            stuck = (rises < RHO * (k - last)) | ((eta_before == eta) & (f_before == f_max))
            eta_before, f_before, last = eta.clone(), f_max.clone(), k
            rises.zero_()
            eta = torch.where(stuck, eta / 2, eta)
            back = stuck.view(column)
            x, g, f = torch.where(back, x_max, x), torch.where(back, g_max, g), torch.where(stuck, f_max, f)


def _run_l1(
    steps: int,
    loss: Callable[[Tensor, Labels], PerImage],
    target: Target,
    clean: Images,
    labels: Labels,
    generator: torch.Generator,
    best: Incumbent,
    rows: Tensor,
    runs: int,
) -> None:
    """So many runs in L1 abreast, from ball to ball; what is met in the last is offered to `best`."""
    threat = target.threat
    x = threat.of_radius(RADII[0][0] * threat.eps).random_point(clean, generator)
    share = torch.full((len(clean), 1), l1.SPARSE, device=clean.device)
    before = torch.full_like(share, 1.0)
    lengths = [int(part * steps) for _, part in RADII[:-1]]
    for (radius, _), length in zip(RADII, [*lengths, steps - sum(lengths)]):
        ball = threat.of_radius(radius * threat.eps)

        def seen(x: Images, last: bool = radius == 1) -> tuple[Tensor, PerImage]:
            g, f, logits = gradient(target.network, x, labels, loss)
            if last:
                best.offer(x, logits, labels, rows, runs)
            return g, f

        x = _in_ball(ball, ball.project(x, clean), clean, seen, length, share, before)
        before = _pixels(x, clean)
        share = before / SPARSER


def _in_ball(
    ball: ThreatModel,
    x: Images,
    clean: Images,
    seen: Callable[[Images], tuple[Tensor, PerImage]],
    steps: int,
    share: Tensor,
    before: Tensor,
) -> Images:
    """The best point of Algorithm 1 in one ball; a `share` of the pixels moves at first, where `before` had been changed."""
    x_max, (g, f_max) = x, seen(x)
    g_max, eta = g, torch.full((len(x), 1, 1, 1), float(ball.eps), device=x.device)
    every = max(int(EVERY * steps), 1)
    for k in range(1, steps + 1):
        s = l1.unit(l1.largest(l1.movable(g, x), share).sign())
        x = ball.project(x + eta * s, clean)
        g, f = seen(x)
        up = (f > f_max).view(-1, 1, 1, 1)
        x_max, g_max, f_max = torch.where(up, x, x_max), torch.where(up, g, g_max), torch.maximum(f, f_max)
        if k % every == 0:
            now = _pixels(x_max, clean)
            back = (now < FEWER_PIXELS * before).view(-1, 1, 1, 1)
            share, before = now / SPARSER, now
            eta = torch.where(back, ball.eps, (eta / SPARSER).clamp_min(ball.eps / SHORTEST))
            x, g = torch.where(back, x_max, x), torch.where(back, g_max, g)
    return x_max


def _pixels(x: Images, clean: Images) -> Tensor:
    """[n, 1]: the share of pixels that differ."""
    return (x != clean).flatten(1).to(x.dtype).mean(1, keepdim=True)
