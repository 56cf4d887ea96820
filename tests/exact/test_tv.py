"""Total-variation minimisation: the energy, the known minimisers, the mask, both gradients."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.datasets import load_sample_image
from small import classifier
from torch import Tensor
from torch.nn.functional import cross_entropy

from basin.config.kinds import choose
from basin.errors import Mistake
from basin.methods.purifiers.tv import Params, Purifier, descent, energy, start, sweep
from basin.models.substitutes import differentiating, substitutes
from basin.randomness import Random, drawing, generator, random_layers

SIZES = st.integers(2, 7)
IMAGES = (
    st.tuples(st.integers(1, 2), st.integers(1, 2), SIZES, SIZES)
    .flatmap(lambda shape: arrays("float64", shape, elements=st.sampled_from([0.0, 1.0, 0.5]) | st.floats(0, 1)))
    .map(torch.from_numpy)
)
PARAMS = st.builds(
    Params, weight=st.floats(1e-3, 10), smoothing=st.floats(1e-3, 0.5), iterations=st.integers(1, 12), keep=st.sampled_from([1.0, 0.5, 0.1])
)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask(x: Tensor, keep: float = 0.5) -> Tensor:
    return (draws(*x.shape, seed=7) < keep).to(x.dtype)


def converged(x: Tensor, params: Params, m: Tensor | None = None) -> Tensor:
    *_, z = descent(x, torch.ones_like(x) if m is None else m, params)
    return z


def psnr(x: Tensor, clean: Tensor) -> float:
    return -10 * (x - clean).square().mean().log10().item()


# The energy -------------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(IMAGES, PARAMS)
def test_the_energy_never_rises_and_every_iterate_stays_between_the_extremes(x, params):
    m = mask(x, params.keep)
    before = None
    for z in descent(x, m, params):
        now = energy(z, x, m, params)
        assert before is None or (now <= before + 1e-12 * (1 + before)).all()
        kept = (m.sum((2, 3)) > 0).all()  # where nothing is, the image is black
        assert z.min() >= (x.min() if kept else 0) - 1e-12
        assert z.max() <= x.max() + 1e-12
        before = now


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_in_float32_on_digits_the_energy_never_rises(digits, keep):
    x, params = digits["test"].floats(slice(0, 64)), Params(keep=keep, iterations=60)
    m = mask(x, keep)
    energies = torch.stack([energy(z, x, m, params) for z in descent(x, m, params)])
    assert (energies.diff(dim=0) <= 1e-6 * energies[:-1]).all()
    assert (energies[-1] < energies[0]).all()


def test_each_half_of_a_sweep_lowers_it_for_itself():
    """The red pixels alone, then the black ones: what the proof needs."""
    x, params = draws(1, 1, 6, 6), Params()
    m, red = torch.ones_like(x), torch.arange(6)[:, None] % 2 == torch.arange(6) % 2
    z = sweep(x, x, m, red, params)
    assert energy(torch.where(red, z, x), x, m, params) < energy(x, x, m, params)
    assert energy(z, x, m, params) < energy(torch.where(red, z, x), x, m, params)


@pytest.mark.parametrize("keep", [1.0, 0.7])
def test_it_comes_to_the_minimum_that_another_optimiser_finds(keep):
    x, params = draws(1, 1, 6, 5), Params(weight=0.2, smoothing=0.05, iterations=300)
    m = mask(x, keep)
    z = x.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([z], max_iter=400, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        (e := energy(z, x, m, params).sum()).backward()
        return e

    optimiser.step(loss)
    torch.testing.assert_close(converged(x, params, m), z.detach(), rtol=0, atol=1e-5)


# Known minimisers -------------------------------------------------------------------------------------------------------------------------


def test_a_step_edge_loses_lambda_over_the_width_of_each_plateau():
    """Rudin, Osher & Fatemi in one dimension: the plateaus move towards one another by lambda / width, and stay flat."""
    low, high, widths, rows = 0.2, 0.9, (5, 3), 3
    x = torch.cat([torch.full((1, 1, rows, widths[0]), low), torch.full((1, 1, rows, widths[1]), high)], 3).double()
    params = Params(weight=0.3, smoothing=2e-3, iterations=3000)
    left, right = converged(x, params).split(widths, 3)
    assert left.mean().item() == pytest.approx(low + params.weight / widths[0], abs=1e-4)
    assert right.mean().item() == pytest.approx(high - params.weight / widths[1], abs=1e-4)
    assert max(left.max() - left.min(), right.max() - right.min()) < 4 * params.smoothing


def test_without_weight_nothing_changes():
    x = draws(2, 3, 8, 8)
    torch.testing.assert_close(Purifier(Params(weight=1e-12))(x), x, rtol=0, atol=1e-8)


def test_with_all_the_weight_the_mean_is_left():
    x = draws(2, 2, 5, 5)
    z = converged(x, Params(weight=20.0, smoothing=0.4, iterations=1500))
    torch.testing.assert_close(z, x.mean((2, 3), keepdim=True).expand_as(x), rtol=0, atol=0.02)


@pytest.mark.parametrize("keep", [1.0, 0.5])
@pytest.mark.parametrize("level", [0.0, 0.37, 1.0])
def test_a_constant_image_stays(keep, level):
    x = torch.full((2, 3, 8, 8), level)
    torch.testing.assert_close(Purifier(Params(keep=keep))(x), x, rtol=0, atol=1e-6)


def test_channels_and_images_are_apart():
    x, purify = draws(3, 2, 8, 8), Purifier(Params())
    alone = torch.cat([purify(x[:, c : c + 1]) for c in range(2)], 1)
    torch.testing.assert_close(alone, purify(x), rtol=0, atol=1e-6)


def test_it_turns_with_the_image_up_to_the_side_of_its_differences():
    """Transposed, the energy is the same; what is left is the order of red and black."""
    x = draws(1, 1, 7, 7)
    purify = Purifier(Params())
    torch.testing.assert_close(purify(x.mT), purify(x).mT)


# Noise ------------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    """96x128 pixels of scikit-learn's photograph of a flower, in colour."""
    return torch.tensor(load_sample_image("flower.jpg")[150:246, 200:328]).permute(2, 0, 1)[None].float() / 255


def test_noise_is_taken_from_a_photograph(photograph):
    noisy = (photograph + 0.1 * torch.randn(photograph.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert psnr(Purifier(Params())(noisy), photograph) > psnr(noisy, photograph) + 3


def test_pixels_that_the_mask_dropped_are_filled_in(photograph):
    masked = Purifier(Params(weight=0.01, keep=0.5))
    m = mask(photograph)
    middle = m * photograph + (1 - m) * photograph.mean()
    assert psnr(masked(photograph), photograph) > psnr(middle, photograph) + 3


# The mask ---------------------------------------------------------------------------------------------------------------------------------


def test_a_dropped_pixel_has_no_influence():
    x = draws(2, 1, 8, 8)
    m = mask(x)
    torch.testing.assert_close(converged(m * x + (1 - m), Params(), m), converged(m * x, Params(), m), rtol=0, atol=0)


@pytest.mark.parametrize("keep", [1e-6, 0.01, 0.3, 0.999])
def test_any_share_gives_an_image(keep):
    z = Purifier(Params(keep=keep))(draws(8, 1, 8, 8).float())
    assert z.isfinite().all() and z.min() >= 0 and z.max() <= 1


def test_the_share_that_is_kept_is_the_one_asked_for():
    x = torch.zeros(50, 1, 28, 28)
    assert Purifier(Params(keep=0.3)).mask(x).mean().item() == pytest.approx(0.3, abs=0.01)


def test_where_nothing_is_kept_around_the_mean_of_the_rest_begins():
    x, m = draws(1, 1, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    m[..., 0] = 1
    assert start(x, m)[..., 2:].unique().item() == pytest.approx(x[..., 0].mean().item())


def test_only_the_masked_one_is_random():
    plain, masked = (classifier() for _ in range(2))
    plain.purifier, masked.purifier = Purifier(Params()), Purifier(Params(keep=0.5, training_draws=2, inference_draws=3))
    assert not plain.randomised and random_layers(plain) == [] and plain.eval().draws == 1
    assert masked.randomised and isinstance(masked.purifier, Random)
    assert masked.train().draws == 2 and masked.eval().draws == 3


# Gradients --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_the_exact_gradient_is_that_of_finite_differences(keep):
    purify = Purifier(Params(keep=keep, iterations=5))

    def fixed(x: Tensor) -> Tensor:
        with drawing(purify, generator(0, "mask")):
            return purify(x)

    assert torch.autograd.gradcheck(fixed, draws(1, 2, 4, 5).requires_grad_())


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_the_identity_gradient_is_that_of_the_bare_classifier_at_the_purified_image(keep, digits):
    model, bare = (classifier().eval() for _ in range(2))
    model.purifier = Purifier(Params(keep=keep))
    x, y = digits["test"].floats(slice(0, 16)).requires_grad_(), digits["test"].labels[:16]
    assert substitutes(model) == ("identity",)
    with drawing(model, generator(0, "mask")), differentiating(model, "identity"):
        logits = model(x)
    with drawing(model, generator(0, "mask")):
        purified = model.purifier(x).detach().requires_grad_()
    torch.testing.assert_close(logits, bare(purified), rtol=1e-5, atol=1e-5)
    (g,) = torch.autograd.grad(cross_entropy(logits, y), x)
    (expected,) = torch.autograd.grad(cross_entropy(bare(purified), y), purified)
    torch.testing.assert_close(g, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_saturated_pixels_have_a_gradient():
    """A mean of ones may be rounded to above one; clamping that would hide the pixel from an attack."""
    x = torch.ones(4, 1, 9, 9).requires_grad_()
    z = Purifier(Params(weight=0.37, keep=0.5))(x)
    (g,) = torch.autograd.grad(z.sum(), x)
    assert z.max() <= 1
    torch.testing.assert_close(g.sum((1, 2, 3)), torch.full((4,), 81.0), rtol=0.02, atol=0)


# Bad input --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high", "got"), [(-0.5, 1.0, "-0.5 to 1"), (0.0, 255.0, "0 to 255"), (float("nan"), 1.0, "nan to nan")])
def test_images_outside_the_range_are_refused(low, high, got):
    x = torch.tensor([[[[low, high]]]])
    said = f"purifiers/tv: pixels outside [0, 1] (got {got}). Give it images scaled to [0, 1]; a classifier normalises after its purifier."
    with pytest.raises(Mistake, match=re.escape(said)):
        Purifier(Params())(x)


def test_finite_differences_may_step_a_little_outside():
    """And find the gradient there: nothing is clamped but rounding."""
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(Purifier(Params(iterations=3)), x.requires_grad_(), eps=1e-4, atol=1e-3)
    assert Purifier(Params())(x - 0.2).unique().item() == pytest.approx(-0.2)


def test_no_images_are_no_images():
    assert Purifier(Params())(torch.zeros(0, 1, 8, 8)).shape == (0, 1, 8, 8)


def test_draws_without_a_mask_are_refused():
    with pytest.raises(ValueError, match=r"without a mask every draw is the same\. Set keep below 1, or the draws to 1\."):
        choose("purifiers", {"kind": "tv", "inference_draws": 4})
