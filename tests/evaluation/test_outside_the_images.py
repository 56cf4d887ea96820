"""Models that have no value outside of the pixel range, or none at some images: nothing asks about what is no image, and what is not
finite reads nothing. And what is begun again, named twice, or not the evaluation that it was."""

import pytest
import torch
from small import BALL, classifier, two_of_five
from torch import Tensor, nn

import basin
from basin.config.kinds import choose
from basin.config.suite import IN_FULL, PRECISE
from basin.errors import Mistake
from basin.evaluation.cascade import Evaluation
from basin.evaluation.declaration import WRONG, declare, difference, difference_error
from basin.evaluation.subject import subject
from basin.evaluation.ways import Attempt
from basin.methods.attacks import spsa
from basin.randomness import generator
from basin.threat.target import Target, asks

N = 40
MODEL = two_of_five()
ALONG = 0.3 * (MODEL.W[0] - MODEL.W[1]).sign()
X = (0.5 + torch.linspace(-1, 1, N)[:, None] * ALONG).view(N, 1, 4, 4)  # half of them holds in a ball of 0.1, and 0.05 of any margin
Y = MODEL(X).argmax(1)
EDGE = torch.where(torch.rand(X.shape, generator=torch.Generator().manual_seed(0)) < 0.3, X.round(), X)  # many pixels are 0 or 1
LINF = basin.Threat(norm="linf", eps=0.1)


class Made(nn.Module):
    """The model on what is made of its images, and what is made of its logits."""

    def __init__(self, before=lambda x: x, after=lambda z, x: z):
        super().__init__()
        self.model, self.before, self.after = MODEL, before, after
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.model(self.before(x)), x)


def suite(**attacks: object) -> basin.Suite:
    return basin.Suite.model_validate({"attacks": attacks})


# Outside of the pixel range ---------------------------------------------------------------------------------------------------------------


def rooted(x: Tensor) -> Tensor:
    """The image itself in [0, 1], and no number below."""
    return (x + 1e-4).sqrt() ** 2 - 1e-4


class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g.flip(3)


@pytest.mark.parametrize("before", [lambda x: x, rooted])
def test_a_wrong_gradient_is_found_though_the_model_has_no_value_outside(before):
    for wrong in (False, True):
        model = subject(Made(lambda x, wrong=wrong: before(Backwards.apply(x) if wrong else x)), EDGE)
        assert (difference_error(model, EDGE, Y).median().item() > WRONG) is wrong
        assert declare(model, None, EDGE[:16]).blind is wrong


BLACK_BOX = {
    "spsa": {"kind": "spsa", "steps": 2, "samples": 4},
    "far": {"kind": "spsa", "steps": 2, "samples": 4, "delta": 0.5},
    "square": {"kind": "square", "queries": 20},
    "boundary": {"kind": "boundary", "queries": 20, "draws": 5, "starts": 5},
}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_nothing_asks_about_what_is_no_image(norm):
    def strict(x: Tensor) -> Tensor:
        assert 0 <= x.min() and x.max() <= 1, "no image"
        return x

    short = {"steps": 2, "targets": 1, "queries": 20, "draws": 1, "doublings": 0}
    asked = basin.Suite.model_validate({"attacks": BLACK_BOX, "adaptive": short})
    basin.evaluate(Made(strict), EDGE, Y, basin.Threat(norm=norm, eps=0.1), asked)


def test_spsa_finds_of_a_model_that_reads_bytes_what_it_finds_of_one_that_rounds():
    """Below 0 a byte begins again at 255."""
    of_bytes = Made(lambda x: (255 * x).to(torch.uint8) / 255)
    rounding = Made(lambda x: (255 * x.clamp(0, 1)).floor() / 255)
    params = spsa.Params(steps=10, samples=32, delta=0.05)
    found = [spsa.perturb(params, Target(model, BALL), EDGE, Y, generator(0, "spsa")) for model in (of_bytes, rounding)]
    assert torch.equal(*found)


# No value at some images ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "after",
    [
        lambda z, off: torch.where(off, torch.nan, z),
        lambda z, off: torch.where(off & (z == z.amax(1, keepdim=True)), torch.inf, z),
        lambda z, off: torch.where(off & (z != z.amax(1, keepdim=True)), -torch.inf, z),
    ],
)
@pytest.mark.parametrize("attack", [{"kind": "margin"}, {"kind": "pgd"}, {"kind": "apgd"}, {"kind": "square", "queries": 5}])
def test_what_is_not_finite_reads_nothing_while_it_is_searched_for_too(after, attack):
    """Off the clean images every answer is no number, or infinite: none holds, of whichever class."""
    clean = {row.numpy().tobytes() for row in X}
    off = lambda x: torch.tensor([[row.detach().numpy().tobytes() not in clean] for row in x])  # noqa: E731
    model = Made(after=lambda z, x: after(z, off(x)))
    one = Evaluation(subject(model, X), None, BALL, (0, "x"), N)
    outcomes = one.run(torch.arange(N), X, Y, {"one": Attempt(choose("attacks", attack))})
    assert outcomes.robust == 0


def test_logits_that_are_no_number_alone_depend_on_the_batch():
    model = Made(lambda x: (x - x.mean(0)) / x.std(0))  # of one image there is no deviation
    assert declare(subject(model, X), None, X[:16]).batch_dependent
    nan, one = torch.full((2, 3), torch.nan), torch.eye(3)[:2]
    assert difference(model, nan, nan) == 0 and difference(model, one, nan) > 1 and difference(model, nan, one) > 1


def test_the_last_digits_of_a_coarse_type_are_no_dependence():
    z, eps = torch.tensor([[1.0, 8.0], [6.0, 2.0]]), torch.finfo(torch.bfloat16).eps
    for coarse in (subject(Made().bfloat16(), X), subject(Made(after=lambda z, x: z.bfloat16()), X)):
        assert coarse.eps == eps and difference(coarse, z, z * (1 + 4 * eps)) < 1 < difference(coarse, z, z * (1 + 16 * eps))
    MODEL.float()
    assert difference(subject(Made(), X), z, z * (1 + eps)) > 1 > difference(subject(Made(), X), z, z * (1 + 1e-7))


# What is begun again, and what it is called -----------------------------------------------------------------------------------------------


def test_an_attack_that_memory_ended_gives_as_many_images_as_one_that_it_did_not(monkeypatch):
    attack = choose("attacks", {"kind": "fgsm"})
    own, calls = attack.module.perturb, iter(range(1000))

    def once_short(*given):
        if next(calls) == 2:
            raise MemoryError
        return own(*given)

    def run() -> tuple[tuple[int, int], Tensor]:
        n, tries = 400, Attempt(attack, probe=0.1)
        x = X.repeat(n // N, 1, 1, 1)
        found = Evaluation(MODEL.eval(), None, BALL, (0, "x"), 16).run(torch.arange(n), x, MODEL(x).argmax(1), {"one": tries})
        return found.spared["one"], found.share

    whole = run()
    monkeypatch.setattr(attack.module, "perturb", once_short)
    again = run()
    assert again[0] == whole[0] and torch.equal(again[1], whole[1])


def test_what_waits_for_an_attack_that_cannot_run_waits_for_nothing():
    """There is no twin."""
    tried = {"transfer": {"kind": "transfer", "attacks": [{"kind": "fgsm"}]}, "fgsm": {"kind": "fgsm"}}
    result = basin.evaluate(Made(), X, Y, LINF, basin.Suite.model_validate({"attacks": tried, "earned": {"fgsm": "transfer"}}))
    assert list(result.attacks) == ["fgsm"] and result.worst_case < 1 and not result.outcomes.spared


@pytest.mark.parametrize("name", [PRECISE, "fgsm" + IN_FULL])
def test_a_name_that_is_given_to_attacks_here_is_refused(name):
    with pytest.raises(ValueError, match=f"the name {name} is that of "):
        suite(**{name: {"kind": "fgsm"}})


def test_a_checkpoint_of_another_evaluation_is_refused(tmp_path, monkeypatch):
    path, fgsm = tmp_path / "checkpoint.safetensors", suite(fgsm={"kind": "fgsm"})
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr("basin.evaluation.robustness._logits", interrupted(after=1))
        basin.evaluate(Made(), X, Y, LINF, fgsm, checkpoint=path)
    for other in ({"threat": basin.Threat(norm="l2", eps=0.1)}, {"suite": suite(pgd={"kind": "pgd"})}, {"seed": 1}, {"labels": 1 - Y}):
        asked = {"model": Made(), "images": X, "labels": Y, "threat": LINF, "suite": fgsm} | other
        with pytest.raises(Mistake, match=r"checkpoint.safetensors: is the checkpoint of another model, images, threat, suite or seed."):
            basin.evaluate(**asked, checkpoint=path)
    basin.evaluate(Made(), X, Y, LINF, fgsm, checkpoint=path)
    assert not path.exists()


def interrupted(after: int):
    from basin.evaluation.robustness import _logits as own

    calls = iter(range(1000))

    def logits(*given):
        if next(calls) == after:
            raise KeyboardInterrupt
        return own(*given)

    return logits


# How it is called -------------------------------------------------------------------------------------------------------------------------


def test_a_model_made_here_that_trains_is_refused():
    with pytest.raises(Mistake, match=r"^model: is in training mode \(got model.training = True\). Call model.eval\(\) first.$"):
        subject(classifier().train(), torch.rand(2, 1, 8, 8))


def test_images_may_want_a_gradient_and_get_none():
    x = X.clone().requires_grad_()
    result = basin.evaluate(Made(), x, Y, LINF, suite(margin={"kind": "margin"}))
    assert x.grad is None and not result.outcomes.points.requires_grad


def test_a_twin_of_other_classes_is_refused():
    twin = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    with pytest.raises(Mistake, match=r"^twin: should tell the model's 5 classes \(got 3\). Give a twin of the same data.$"):
        basin.evaluate(Made(), X, Y, LINF, "quick", twin=twin)


def test_a_device_of_any_kind_is_asked_as_a_gpu_is():
    others = [[asks(k, torch.device(kind)) for k in (0, 1, 10)] for kind in ("cuda", "mps")]
    assert others == [[True, False, True]] * 2 and asks(1, torch.device("cpu"))
