"""What a model that somebody brings is: normalisation, types, answers, features; and that it stays what it was."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from small import classifier
from torch import Tensor, nn

import basin
from basin.errors import Mistake
from basin.evaluation.subject import normalisation, subject
from basin.models.classifier import Classifier, Normalise
from basin.randomness import Random
from basin.threat.foreign import sealed
from basin.threat.target import derivative, gradient, margin

X = torch.rand((6, 3, 4, 4), generator=torch.Generator().manual_seed(0))
LAYER = nn.Linear(48, 5)
nn.init.uniform_(LAYER.weight, -1, 1, generator=torch.Generator().manual_seed(1))
nn.init.zeros_(LAYER.bias)
CONFIG = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
LINF = basin.Threat(norm="linf", eps=0.1)


class Made(nn.Module):
    """A linear model, what is made of its logits, and attributes."""

    def __init__(self, answer=lambda z: z, **attributes: object):
        super().__init__()
        self.layer, self.answer = nn.Sequential(nn.Flatten(), LAYER), answer
        vars(self).update(attributes)

    def forward(self, x: Tensor) -> object:
        return self.answer(self.layer(x))


def normalised(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(CONFIG[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    return (x - mean) / std


# Normalisation ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "attributes"),
    [
        ("0.4,0.5,0.6/0.2,0.25,0.3", {}),
        ("model", {"pretrained_cfg": CONFIG}),
        ("model", {"pretrained_cfg": SimpleNamespace(**CONFIG)}),
        ("model", {"default_cfg": CONFIG | {"mean": list(CONFIG["mean"])}}),
    ],
)
def test_images_are_normalised_as_asked(asked, attributes):
    model = Made(**attributes).eval()
    one = subject(model, X, normalisation(asked, model))
    torch.testing.assert_close(one(X), model(normalised(X)))
    assert not one.facts, "what is applied is not said to be missing"


def test_a_mean_that_is_named_and_not_applied_is_said():
    one = subject(Made(pretrained_cfg=CONFIG).eval(), X)
    assert one.facts == ["names a mean [0.4, 0.5, 0.6] and std [0.2, 0.25, 0.3] that are not applied (--normalise model applies them)"]


@pytest.mark.parametrize(
    ("asked", "config", "message"),
    [
        ("model", None, "--normalise: the model names no mean and std (got 'model'). Give them: MEAN"),
        ("model", {"mean": ("x",), "std": (1,)}, "--normalise: the model names no mean and std (got 'model'). Give them: MEAN"),
        ("model", {"mean": (0.5,) * 3, "std": (0.0,) * 3}, "--normalise: one positive std for each mean is needed (got 'model'). Write"),
        ("modell", None, "--normalise: not a mean and a std (got 'modell'). Write e.g."),
        ("0.5", None, "--normalise: not a mean and a std (got '0.5'). Write e.g."),
        ("1/2/3", None, "--normalise: not a mean and a std (got '1/2/3'). Write e.g."),
        ("0.5,0.5/0.5", None, "--normalise: one positive std for each mean is needed (got '0.5,0.5/0.5'). Write e.g."),
        ("0.5/0", None, "--normalise: one positive std for each mean is needed (got '0.5/0'). Write e.g."),
        ("nan/1", None, "--normalise: one positive std for each mean is needed (got 'nan/1'). Write e.g."),
        ("0.5/0.25", None, "--normalise: a mean and a std for each channel are needed (got 1 for 3). Give as many."),
    ],
)
def test_a_normalisation_that_is_none_is_one_sentence(asked, config, message):
    model = Made(pretrained_cfg=config).eval()
    with pytest.raises(Mistake) as refusal:
        subject(model, X, normalisation(asked, model))
    assert str(refusal.value).startswith(message) and "\n" not in str(refusal.value)


def test_means_for_colour_do_not_stretch_grey_images():
    with pytest.raises(Mistake, match=r"needed \(got 3 for 1\)"):
        subject(Made().eval(), X[:, :1], Normalise([0.5] * 3, [0.5] * 3))


def test_a_model_that_was_made_here_is_not_normalised_twice():
    with pytest.raises(Mistake, match=r"^--normalise: the model has a normalisation already \(got Classifier\)"):
        subject(classifier().eval(), torch.rand(2, 1, 8, 8), Normalise([0.5], [0.5]))


# Types, answers, features -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_are_brought_there_and_back(dtype):
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5).to(dtype)).eval()
    one = subject(model, X)
    assert one.facts == [f"computes in {str(dtype).removeprefix('torch.')}"]
    assert one(X).dtype == torch.float32 and torch.equal(one(X), model(X.to(dtype)).float())
    assert gradient(one, X, torch.zeros(6, dtype=torch.int64), margin)[0].abs().amin(0).max() > 0


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (lambda z: (z, None), "tuple"),
        (lambda z: [z], "list"),
        (lambda z: {"logits": z}, "dict"),
        (lambda z: OrderedDict(loss=None, logits=z), "OrderedDict"),
        (lambda z: SimpleNamespace(loss=None, logits=z), "SimpleNamespace"),
    ],
)
def test_logits_are_taken_out_of_what_they_come_in(answer, name):
    one = subject(Made(answer).eval(), X)
    assert torch.equal(one(X), Made().layer(X)) and one.facts == [f"logits taken out of {name}"]


def test_an_answer_that_is_kept_by_the_model_is_copied():
    kept = torch.zeros(6, 5)
    one = subject(Made(lambda z: kept[: len(z)].copy_(z.detach())).eval(), X)
    first = one(X).clone(), one(X)
    one(X.flip(0))
    assert torch.equal(*first), "a later pass does not change an earlier answer"


@pytest.mark.parametrize("fails", [RuntimeError("later"), SystemExit(1), GeneratorExit(), StopIteration()])
def test_what_is_raised_later_is_a_sentence_too_and_an_interruption_or_short_memory_passes(fails):
    def answer(z):
        if calls:
            raise calls[0]
        return z

    calls: list[BaseException] = []
    one = subject(Made(answer).eval(), X)
    calls.append(fails)
    with pytest.raises(Mistake, match=rf"^model: cannot take float32 images \[6, 3, 4, 4\] \(got {type(fails).__name__}"):
        one(X)
    for passes in (MemoryError(), KeyboardInterrupt()):
        calls[0] = passes
        with pytest.raises(type(passes)):
            one(X)
    with pytest.raises(KeyboardInterrupt):
        subject(Made(answer).eval(), X)


def test_features_are_kept_where_an_attack_could_use_them():
    flat = nn.Flatten()
    one = subject(Made(features=flat).eval(), X)
    assert torch.equal(one.features(X), X.flatten(1))
    for useless in (7, lambda x: x.detach(), lambda x: x.sum(), lambda x: "h", lambda x: x[:1], lambda x: 1 / 0):
        assert not hasattr(subject(Made(features=useless).eval(), X), "features")


@pytest.mark.parametrize("honest", [True, False])
def test_a_compiled_model_is_judged_as_what_was_compiled_where_that_is_the_same(honest):
    def backend(graph, _):
        return graph.forward if honest else lambda *given: [2 * one for one in graph(*given)]

    model = Made().eval()
    compiled = torch.compile(model, backend=backend)
    one = subject(compiled, X)
    assert one.model is (model if honest else compiled) and len(one.facts) is int(honest)
    torch.testing.assert_close(one(X), compiled(X))


def test_an_exported_model_has_the_mode_that_it_was_exported_in():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), LAYER).eval()
    exported = torch.export.export(model, (X[:2],), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    one = subject(exported, X)
    assert exported.training and one.facts == ["exported: in the mode that it was exported in"]
    torch.testing.assert_close(one(X), model(X))


def test_a_frozen_scripted_model_has_no_mode():
    model = nn.Sequential(nn.Flatten(), LAYER).eval()
    frozen = torch.jit.freeze(torch.jit.trace(model, X[:2]))
    assert not hasattr(frozen, "training")
    torch.testing.assert_close(subject(frozen, X)(X), model(X))


def test_a_model_without_a_gradient_that_takes_few_at_once_is_asked_about_few():
    def forward(z):
        if len(z) > 4:
            raise RuntimeError("too many")
        return z.detach()

    suite = basin.Suite.model_validate({"attacks": {"spsa": {"kind": "spsa", "steps": 2, "samples": 3}}})
    assert basin.evaluate(Made(forward).eval(), X, torch.arange(6) % 5, LINF, suite, batch=4).outcomes.passes


def test_a_model_that_takes_few_at_once_says_how_to_give_it_few():
    def forward(z):
        if len(z) > 4:
            raise RuntimeError("too many")
        return z

    y = torch.arange(6) % 5
    with pytest.raises(Mistake, match=r"got RuntimeError: too many\)\. Give the images that it is for, or fewer at once \(--batch\)"):
        basin.evaluate(Made(forward).eval(), X, y, LINF, "quick")
    assert basin.evaluate(Made(forward).eval(), X, y, LINF, "quick", batch=4).outcomes.passes


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("images", X.numpy(), r"^images: should be a torch.Tensor \(got ndarray\)\. Make one\.$"),
        ("labels", [0] * 6, r"^labels: should be a torch.Tensor \(got list\)\. Make one\.$"),
        ("threat", {"norm": "linf"}, r"^threat: should be a basin.Threat \(got dict\)\. Make one\.$"),
        ("suite", {"attacks": {}}, r"^suite: should be a basin.Suite, or the name of one \(got dict\)\. Make one\.$"),
        ("suite", basin.Suite(), r"^suite: should hold attacks, or an adaptive table, or be ready-made \(got neither\)\."),
        ("suite", basin.Suite(ready="quick", adaptive={}), r"^suite: should hold .* \(got its own attacks and 'quick'\)\."),
        ("suite", basin.Suite(ready="quik"), r"^suite: no such suite \(got 'quik'\)\. Did you mean 'quick'\?$"),
        ("suite", basin.Suite(ready="quick", threat=LINF), r"^suite: has a threat of its own \(got linf-0\.1\)\. Give it as `threat`"),
        ("batch", "4", r"^batch: should be an int \(got str\)\. Make one\.$"),
        ("batch", 0, r"^batch: should be 1 or more \(got 0\)\. Give 256, or fewer where memory is short\.$"),
        ("checkpoint", 3, r"^checkpoint: should be a pathlib.Path \(got int\)\. Make one\.$"),
    ],
)
def test_what_is_of_another_kind_is_refused(name, value, message):
    asked = {"model": Made().eval(), "images": X, "labels": torch.arange(6) % 5, "threat": LINF, "suite": "quick"}
    with pytest.raises(Mistake, match=message):
        basin.evaluate(**asked | {name: value})


def test_a_suite_that_takes_a_ready_made_one_is_that_one():
    asked = {"model": nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).eval(), "images": X, "labels": torch.arange(6) % 5, "threat": LINF}
    taken, named = basin.evaluate(**asked, suite=basin.Suite(ready="quick")), basin.evaluate(**asked, suite="quick")
    assert taken.attacks == named.attacks and taken.attacks


def test_images_of_inference_mode_and_a_call_in_it(tmp_path):
    suite, y = basin.Suite.model_validate({"attacks": {"pgd": {"kind": "pgd", "steps": 3}}}), torch.arange(6) % 5
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).eval()
    plain = basin.evaluate(model, X, y, LINF, suite, checkpoint=str(tmp_path / "state"))
    with torch.inference_mode():
        within = basin.evaluate(model, X.clone(), y.clone(), LINF, suite)
    assert torch.equal(within.outcomes.points, plain.outcomes.points) and plain.outcomes.passes and not any(tmp_path.iterdir())


# What stays -------------------------------------------------------------------------------------------------------------------------------


def test_a_model_and_its_images_are_after_an_evaluation_what_they_were():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten(), nn.Linear(48, 5)).eval()
    model[3].bias.requires_grad_(False)
    model[1].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own, y, drawn = X.clone(), torch.arange(6) % 5, torch.get_rng_state()
    basin.evaluate(model, own, y, LINF, basin.Suite.model_validate({"attacks": {"fgsm": {"kind": "fgsm"}}}))
    assert (
        torch.equal(own, X)
        and torch.equal(torch.get_rng_state(), drawn)
        and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    )
    assert [part.training for part in model.modules()] == [False, False, True, False, False]
    flags = {name: (parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()}
    assert flags == {"0.weight": (True, None), "0.bias": (True, None), "3.weight": (True, None), "3.bias": (False, None)}


@pytest.mark.parametrize("grows", [True, False])
def test_what_moved_in_a_model_that_is_refused_is_put_back(grows):
    class Moving(Made):
        def forward(self, x):
            self.seen = torch.cat([self.seen, self.seen]) if grows else self.seen.add_(1)
            return super().forward(x)

    model = Moving()
    model.register_buffer("seen", torch.zeros(1))
    with pytest.raises(Mistake, match=r"^model: changes while it is judged \(got another seen, of Moving"):
        subject(model.eval(), X)
    assert torch.equal(model.seen, torch.zeros(1))


# Noise, and gradients that overflow -------------------------------------------------------------------------------------------------------


class Noise(Random):
    def forward(self, x: Tensor) -> Tensor:
        return self.normal(tuple(x.shape), x)


def test_two_random_layers_of_one_shape_do_not_share_their_noise():
    class Backbone(nn.Module):
        width = 4

        def __init__(self):
            super().__init__()
            self.one, self.other = Noise(), Noise()

        def forward(self, x):
            return torch.cat([self.one(x.flatten(1)), self.other(x.flatten(1))], 1)

    one, again = (Classifier(nn.Identity(), nn.Identity(), Backbone(), nn.Identity(), {})(torch.zeros(2, 1, 1, 4)) for _ in range(2))
    assert torch.equal(one, again) and not torch.equal(one[:, :4], one[:, 4:])


class Overflows(torch.autograd.Function):
    """As torchdiffeq's adjoint does, for an image that begins with 0."""

    @staticmethod
    def forward(ctx, x):
        ctx.bad = bool((x.flatten(1)[:, 0] == 0).any())
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        assert not ctx.bad, "underflow in dt nan"
        return 2 * g


@pytest.mark.parametrize("network", [lambda x: LAYER(Overflows.apply(x.flatten(1))), lambda x: LAYER(2 * x.flatten(1) + _root(x))])
def test_a_gradient_that_overflows_is_zero_for_its_own_image_only(network):
    x, y, rows = X.clone(), torch.arange(6) % 5, torch.arange(6)
    x[2, 0, 0, 0] = 0
    calm = gradient(lambda x: LAYER(2 * x.flatten(1)), x, y, lambda z, y: z[rows[: len(z)], y] * (rows + 1))[0]
    raw = derivative(network, x, y, lambda z, y: z[rows[: len(z)], y] * (rows + 1))[0]
    g = torch.nan_to_num(raw, 0.0, 0.0, 0.0)
    assert raw.flatten(1).isfinite().all(1).tolist() == [True, True, False, True, True, True]
    torch.testing.assert_close(g[rows != 2], calm[rows != 2])
    assert g[2, 0, 0, 0] == 0
    foreign = x.clone().requires_grad_()
    (sealed(network)(foreign)[rows, y] * (rows + 1)).sum().backward()
    torch.testing.assert_close(foreign.grad[rows != 2], calm[rows != 2])
    assert foreign.grad[2, 0, 0, 0] == 0


def _root(x: Tensor) -> Tensor:
    """Zero, with a derivative of infinity times 0 where the first pixel is 0."""
    first = x.flatten(1)[:, :1]
    return 0 * first.sqrt() - 0 * first.detach().sqrt()
