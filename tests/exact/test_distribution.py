"""Networks of distributions against what is known in closed form."""

from pathlib import Path

import pytest
import small
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from basin.config.kinds import choose
from basin.config.posterior import Posterior
from basin.config.schedule import Schedule
from basin.data.splits import Split
from basin.errors import Mistake
from basin.models.classifier import Classifier
from basin.models.distribution import Distribution, mean_network
from basin.models.ode import flows
from basin.randomness import construct, drawing, generator
from basin.training import optimise
from basin.training.optimise import lines
from basin.training.phase import Phase

ODENET = {"kind": "odenet", "channels": 8, "halvings": 1, "solver": {"steps": 3}}
both_ways = pytest.mark.parametrize("local", [True, False])


def of(network, **settings) -> Distribution:
    """Distributions around the network that a function makes."""
    with construct(0, "test"):
        return Distribution(network(), Posterior(**settings))


def test_any_scale_has_its_rho():
    for scale in (0.1, 800.0, 1e5):
        made = of(lambda: torch.nn.Linear(4, 3), scale=scale)
        for mu, sigma in made.scales().items():
            rms = mu.detach().square().mean().sqrt()
            torch.testing.assert_close(sigma, (scale * rms + made.posterior.floor).expand_as(sigma))


def test_a_layer_whose_weights_are_read_without_a_call_is_refused_and_drawn_as_weights():
    """torchvision's swin does so: the hook that draws its outputs would never run."""

    class Reads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(4, 3)

        def forward(self, x):
            return torch.nn.functional.linear(x, self.inner.weight, self.inner.bias)

    x = torch.ones(2, 4)
    with pytest.raises(Mistake, match=r"^distribution\.local: .* \(got inner\)\. Set it to false\.$"):
        of(Reads, local=True).train()(x)
    made = of(Reads, local=False).train()
    assert not torch.equal(made(x), made(x))


def classifier(backbone=small.CONVNET, **settings) -> Classifier:
    """Backbone and linear classifier, both of distributions."""
    return small.classifier({"kind": "distribution", "of": backbone, **settings}, {"kind": "distribution", **settings})


def drawn(model: nn.Module, x: Tensor, seed: int) -> Tensor:
    with drawing(model, generator(seed, "draws")), torch.no_grad():
        return model(x)


# The posterior ----------------------------------------------------------------------------------------------------------------------------


@both_ways
def test_training_at_kl_1_finds_the_exact_posterior_of_linear_regression(local, tmp_path):
    """y = w_j + N(0, noise^2) for an image of pixel j alone: precision n_j / noise^2 + 1 / s^2 in each weight, and no covariance."""
    noise, s, counts = 2.0, 1.5, torch.tensor([2, 6, 30, 90])
    pixel = torch.arange(4).repeat_interleave(counts)
    images = 255 * nn.functional.one_hot(pixel, 4).byte().view(-1, 1, 2, 2)
    y = (torch.tensor([2.0, -1.0, 1.0, -2.0])[pixel] + noise * torch.randn(len(pixel), generator=generator(0, "noise"))).round().long()
    precision = counts / noise**2 + 1 / s**2
    mean = torch.zeros(4).index_add(0, pixel, y.float()) / noise**2 / precision

    layer = of(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False)), kl=1.0, prior=s, local=local, scale=1.0)

    def loss(x, y, g):  # of several draws, for less variance
        outputs = layer(x.repeat(8, 1, 1, 1)).view(8, -1) if local else torch.stack([layer(x)[:, 0] for _ in range(4)])
        return (outputs - y).square().mean() / (2 * noise**2)

    phase = Phase("regression", Schedule(epochs=700, batch=128, rate=0.02, policy="one_cycle"), [layer], loss)
    layer.width = 1
    model = Classifier(nn.Identity(), nn.Identity(), layer, nn.Identity(), {})
    optimise.run(model, [phase], Split(images, y), lambda: 0.0, (0, "regression"), tmp_path / "c")
    ((mu, sigma),) = layer.scales().items()
    deviation = precision.rsqrt()
    assert ((mu[0] - mean).abs() < 0.08 * deviation).all(), (mu[0] - mean) / deviation
    assert torch.allclose(sigma[0], deviation, rtol=0.05), sigma[0] / deviation


def test_the_divergence_is_what_draws_say_it_is():
    layer = of(lambda: nn.Linear(3, 2), scale=0.7, floor=0.1, prior=0.8, kl=0.25)
    q = [torch.distributions.Normal(mu.detach(), sigma.detach()) for mu, sigma in layer.scales().items()]
    p, n = torch.distributions.Normal(0.0, 0.8), 200_000
    ratios = torch.zeros(n)
    for each in q:
        w = each.mean + each.stddev * torch.randn((n, *each.mean.shape), generator=generator(0, "q"))
        ratios += (each.log_prob(w) - p.log_prob(w)).flatten(1).sum(1)
    error = 4 * ratios.std().item() / n**0.5
    assert error < 0.02 * layer.divergence() and layer.divergence().item() == pytest.approx(ratios.mean().item(), abs=error)
    assert layer.penalty() == 0.25 * layer.divergence()


def test_the_divergence_is_0_at_the_prior_and_nowhere_else():
    layer = of(lambda: nn.Linear(3, 2), prior=0.8)
    with torch.no_grad():
        for mu, rho in zip(layer.network.parameters(), layer.rho):
            mu.zero_()
            rho.fill_(torch.tensor(0.8).expm1().log())
        assert layer.divergence().abs() < 1e-5
        layer.rho[0].add_(0.5)
        assert layer.divergence() > 0.1


# Drawing weights, drawing outputs --------------------------------------------------------------------------------------------------------

LAYERS = {
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "conv": (lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), (2, 5, 5)),
    "conv without bias": (lambda: nn.Conv2d(2, 3, 2, padding="same", dilation=2, bias=False), (2, 4, 4)),
}


@both_ways
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_have_the_mean_and_the_variance_of_their_weights(name, local):
    """E and Var of sum_i w_i x_i: sum_i mu_i x_i, and sum_i sigma_i^2 x_i^2, i.e. the layer with squared scales, of the squared image."""
    make, shape = LAYERS[name]
    layer, n = of(make, scale=0.8, local=local), 3000
    with torch.no_grad():
        for rho in layer.rho:
            rho.add_(torch.rand(rho.shape, generator=generator(1, "rho")))
        x = torch.randn(1, *shape, generator=generator(0, "x"))
        squared = make()
        squared.load_state_dict(
            {name: sigma.square() for (name, _), sigma in zip(layer.network.named_parameters(), layer.scales().values())}
        )
        mean, variance = layer.network(x)[0], squared(x.square())[0]
        outputs = layer(x.expand(n, *x.shape[1:])) if local else torch.cat([layer(x) for _ in range(n)])
    assert ((outputs.mean(0) - mean).abs() < 4.5 * (variance / n).sqrt()).all()
    assert ((outputs.var(0) / variance - 1).abs() < 4.5 * (2 / n) ** 0.5).all()


def test_images_of_a_batch_have_noise_of_their_own_only_where_outputs_are_drawn():
    x = torch.rand(1, 1, 8, 8, generator=generator(0, "x")).expand(6, 1, 8, 8)
    alike = {local: drawn(classifier(local=local).eval(), x, 0) for local in (True, False)}
    assert len(alike[True].unique(dim=0)) == 6
    torch.testing.assert_close(alike[False], alike[False][:1].expand(6, -1))


@both_ways
def test_a_flow_keeps_one_draw_through_its_solve_and_takes_another_for_the_next(local):
    """Its solve is then that of the network which has the drawn weights for its own."""
    model = classifier(ODENET, local=local).eval()
    (flow,) = flows(model)
    solves: list[list[dict[str, Tensor]]] = []
    flow.register_forward_pre_hook(lambda *_: solves.append([]))
    flow.drift.register_forward_hook(lambda drift, *_: solves[-1].append(dict(drift.named_parameters())))
    states: list[tuple[Tensor, Tensor]] = []
    flow.register_forward_hook(lambda _, inputs, output: states.append((inputs[0], output)))
    x = torch.rand(2, 1, 8, 8, generator=generator(0, "x"))
    drawn(model, x, 0)
    drawn(model, x, 1)
    first, second = solves
    assert len(first) == flow.nfe == 12
    for name, weight in first[0].items():
        assert all(evaluation[name] is weight for evaluation in first)
        assert not torch.isclose(weight, second[0][name]).all()
        assert not torch.equal(weight, flow.drift.get_parameter(name))
    flow.drift.load_state_dict(first[0])
    z0, z1 = states[0]
    torch.testing.assert_close(flow(z0), z1, rtol=1e-5, atol=1e-6)


# The whole network -----------------------------------------------------------------------------------------------------------------------


@both_ways
def test_without_scale_it_is_the_deterministic_network(local):
    plain, model = small.classifier(), classifier(scale=1e-6, local=local).eval()
    model.backbone.network.load_state_dict(plain.backbone.state_dict())
    model.head.network.load_state_dict(plain.head.classifier.state_dict())
    x = torch.rand(5, 1, 8, 8, generator=generator(0, "x"))
    torch.testing.assert_close(drawn(model, x, 0), plain(x), rtol=1e-4, atol=1e-4)
    with mean_network(model):
        torch.testing.assert_close(model(x), plain(x), rtol=1e-6, atol=1e-6)


def test_the_mean_network_is_one_pass_and_the_noise_comes_back():
    model, x = classifier(inference_draws=4).eval(), torch.rand(5, 1, 8, 8, generator=generator(0, "x"))
    with pytest.raises(KeyError), mean_network(model):
        assert model.draws == 1 and torch.equal(model(x), model(x))
        raise KeyError
    assert model.draws == 4 and not torch.equal(model(x), model(x))


@both_ways
def test_draws_are_those_of_the_generator(local):
    model, x = classifier(local=local).eval(), torch.rand(5, 1, 8, 8, generator=generator(0, "x"))
    before = torch.get_rng_state()
    one, same, other = (drawn(model, x, seed) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.isclose(one, other).any()
    assert torch.equal(torch.get_rng_state(), before)


def test_more_draws_are_less_random():
    model, x = classifier(scale=0.5).eval(), torch.rand(5, 1, 8, 8, generator=generator(0, "x"))

    def spread(draws: int) -> float:
        model.head.inference_draws = draws
        return torch.stack([drawn(model, x, seed).softmax(1) for seed in range(30)]).std(0).mean().item()

    assert spread(9) == pytest.approx(spread(1) / 3, rel=0.25)


@both_ways
@pytest.mark.parametrize("dark", [False, True])
def test_gradients_reach_every_mean_and_scale_and_are_finite_on_a_dark_image(local, dark):
    """Of a black image the first layer's outputs have no variance but that of the bias."""
    model = classifier({"kind": "resnet", "depth": 8, "width": 4}, local=local)
    x = torch.zeros(4, 1, 8, 8) if dark else torch.rand(4, 1, 8, 8, generator=generator(0, "x"))
    loss = nn.functional.cross_entropy(model(x + 0.3 if dark else x), torch.arange(4))  # 0.3: the mean that normalisation takes off
    for name, parameter in model.named_parameters():
        (g,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        assert g.isfinite().all() and (dark or g.abs().max() > 0), name


def test_scales_start_where_they_were_asked_to_and_stay_above_their_floor():
    layer = of(lambda: nn.Sequential(nn.Linear(30, 30), nn.GroupNorm(2, 30)), scale=0.2, floor=0.01)
    means = list(layer.network.parameters())
    everything = torch.cat([mu.flatten() for mu in means])
    for mu, sigma in layer.scales().items():
        reference = mu if mu.abs().max() > 0 else everything  # a norm's bias starts at 0
        torch.testing.assert_close(sigma, (0.01 + 0.2 * reference.square().mean().sqrt()).expand(mu.shape).detach())
    with torch.no_grad():
        for rho in layer.rho:
            rho.fill_(-50.0)
    assert all(torch.equal(sigma, torch.full_like(sigma, 0.01)) for sigma in layer.scales().values())
    assert lines(layer)["mean_relative_scale"] == pytest.approx(0.01 / everything.abs().mean().item())
    assert lines(small.classifier()) == {}


def test_the_scales_shrink_without_a_prior_and_not_with_one(digits, tmp_path):
    def course(**settings) -> list[float]:
        model = classifier(scale=0.3, **settings)
        loss = small.method("natural")
        phase = Phase("n", Schedule(epochs=4, rate=0.01, batch=64), [model.backbone, model.head], lambda x, y, g: loss(model, x, y, g))
        scales = [lines(model)["mean_relative_scale"]]
        watch = lambda step, row: scales.append(lines(model)["mean_relative_scale"])  # noqa: E731
        optimise.run(model, [phase], digits["train"], lambda: 0.0, (0, "m"), Path(tmp_path) / "c", watch)
        assert (model.eval()(digits["test"].floats(slice(0, 200))).argmax(1) == digits["test"].labels[:200]).float().mean() > 0.8
        return scales

    free, held = course(), course(kl=0.1, prior=0.1)
    assert free == sorted(free, reverse=True) and free[-1] < 0.8 * free[0]
    assert held[-1] > held[0]


def test_distributions_of_distributions_are_refused():
    inner = {"kind": "distribution", "of": {"kind": "convnet"}}
    with pytest.raises(ValidationError, match="is one of distributions already. Name the backbone itself."):
        choose("backbones", {"kind": "distribution", "of": inner})


def test_its_classifier_has_its_settings():
    settings = {"kl": 0.5, "scale": 0.2, "local": False, "inference_draws": 20}
    choice = choose("backbones", {"kind": "distribution", "of": {"kind": "convnet"}, **settings})
    assert choice.module.head(choice.params) == choose("heads", {"kind": "distribution", **settings}).tree()
