"""Training losses against their equations."""

import small
import torch
from torch.nn.functional import cross_entropy

from pipeline.attacks import Target, pgd
from pipeline.threat import TOLERANCE
from pipeline.training import fast, mart, natural, trades


def drawn(n=12):
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(n, 1, 8, 8, generator=g), torch.randint(10, (n,), generator=g)
    return small.classifier().eval(), x, y


def seeded():
    return torch.Generator().manual_seed(1)


def test_trades_without_its_second_term_is_natural_training():
    network, x, y = drawn()
    assert torch.equal(
        trades.loss(trades.Params(beta=0.0), network, x, y, small.BALL, seeded()),
        natural.loss(natural.Params(), network, x, y, small.BALL, seeded()),
    )


def test_trades_is_its_equation():
    network, x, y = drawn()
    params = trades.Params(beta=3.0, steps=4)
    moved = trades.ascend(params, network, x, small.BALL, seeded())
    p, q = network(x).softmax(1), network(moved).softmax(1)
    by_hand = cross_entropy(network(x), y) + 3.0 * (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(trades.loss(params, network, x, y, small.BALL, seeded()), by_hand, atol=1e-6)


def test_trades_climbs_the_divergence_inside_the_ball():
    network, x, _ = drawn()
    z = network(x)
    moved = trades.ascend(trades.Params(), network, x, small.BALL, seeded())
    random = small.BALL.random_point(x, seeded())
    assert (small.BALL.distance(moved, x) <= small.BALL.eps + TOLERANCE).all()
    assert (trades.divergence(z, network(moved)) > 2 * trades.divergence(z, network(random))).all()


def test_mart_is_its_equation():
    network, x, y = drawn()
    params = mart.Params.model_validate({"lambda": 5.0, "steps": 3})
    moved = pgd.ascend(pgd.Params(steps=3, step=params.step), Target(network, small.BALL), x, y, seeded())
    p, q = network(x).softmax(1), network(moved).softmax(1)
    rows = torch.arange(len(y))
    others = q.clone()
    others[rows, y] = 0
    by_hand = -q[rows, y].log() - (1 - others.amax(1)).log() + 5.0 * (p * (p / q).log()).sum(1) * (1 - p[rows, y])
    assert torch.allclose(mart.loss(params, network, x, y, small.BALL, seeded()), by_hand.mean(), atol=1e-5)


def test_fast_takes_one_step_from_a_random_start():
    network, x, y = drawn()
    start = small.BALL.random_point(x, seeded()).requires_grad_()
    (g,) = torch.autograd.grad(cross_entropy(network(start), y, reduction="sum"), start)
    moved = small.BALL.project(start.detach() + 1.25 * small.BALL.eps * g.sign(), x)
    assert torch.equal(fast.loss(fast.Params(), network, x, y, small.BALL, seeded()), cross_entropy(network(moved), y))
