"""Models drawn from a grammar of layers and faults: a plain count of their own answers, or one sentence; nothing else is raised."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from basin.config.suite import Adaptive, Suite
from basin.errors import Mistake
from basin.evaluation import robustness
from basin.evaluation.cascade import FRESH
from basin.evaluation.outside import _as_taken, _digest, _placed
from basin.evaluation.robustness import evaluate
from basin.evaluation.subject import logits_of, subject
from basin.methods.attacks import surrogate
from basin.randomness import construct
from basin.threat.ball import ThreatModel

N, CLASSES = 6, 4
X = torch.rand((N, 1, 4, 4), generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % CLASSES
CHEAP = {"steps": 2, "targets": 1, "queries": 4, "draws": 1, "doublings": 0}
SUITE = Suite.model_validate({"attacks": {"fgsm": {"kind": "fgsm"}, "square": {"kind": "square", "queries": 3}}})
RANDOM = {"noise", "dropout kept", "global noise"}
SHAKY = {"buffers move", "batch norm kept"}  # refused where they are seen to move


class Call(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], object]):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def raising(error: BaseException) -> Callable:
    def call(*_):
        raise error

    return call


def without_grad(x):
    with torch.no_grad():
        return x * 1


def in_inference(x):
    with torch.inference_mode():
        return x * 1


def switched_off(x):
    torch.set_grad_enabled(False)
    return x * 1


def endless(x):
    return endless(x)


class BackwardFails(torch.autograd.Function):
    """Where the first image's first number is above a half, and everywhere in a batch that has one."""

    @staticmethod
    def forward(ctx, x):
        ctx.above = bool((x.flatten(1)[:, 0] > 0.5).any())
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        if ctx.above:
            raise SystemExit("no way back")
        return g


def kept(layer: nn.Module) -> nn.Module:
    """In training mode, whatever `eval()` says."""
    layer.train = lambda mode=True: layer
    return layer


class Moving(nn.Module):
    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        if self.how == "grows":
            self.seen = torch.cat([self.seen, self.seen[:1]])
        elif self.how == "replaced":
            self.seen = self.seen + 1
        elif self.how == "retyped":
            self.seen = self.seen.double()
        elif not torch.is_grad_enabled() or self.how == "always":
            self.seen += 1
        return x


class Words(str):
    logits = 3


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "flat": nn.Flatten,
    "relu": nn.ReLU,
    "softmax": lambda: nn.Softmax(1),
    "norm": lambda: Call(lambda x: torch.nn.functional.layer_norm(x, x.shape[1:])),
    "dropout": nn.Dropout,
    "dropout kept": lambda: kept(nn.Dropout()),
    "batch norm kept": lambda: kept(nn.BatchNorm2d(1)),
    "batch norm": lambda: nn.BatchNorm2d(1),
    "conv": lambda: nn.Conv2d(1, 1, 3, padding=1),
    "spectral": lambda: parametrizations.spectral_norm(nn.Conv2d(1, 1, 3, padding=1)),
    "round": lambda: Call(lambda x: (8 * x).round() / 8),
    "sign": lambda: Call(torch.sign),
    "detach": lambda: Call(torch.detach),
    "no_grad": lambda: Call(without_grad),
    "inference": lambda: Call(in_inference),
    "switched off": lambda: Call(switched_off),
    "clamp in place": lambda: Call(lambda x: x.clamp_(0.2, 0.8)),
    "sqrt of nothing": lambda: Call(lambda x: x + (0 * x).sqrt()),
    "backward fails": lambda: Call(BackwardFails.apply),
    "half": lambda: Call(Tensor.half),
    "float": lambda: Call(Tensor.float),
    "double": lambda: Call(Tensor.double),
    "bfloat16": lambda: Call(Tensor.bfloat16),
    "long": lambda: Call(lambda x: (9 * x).long()),
    "resized": lambda: Call(lambda x: x.reshape(len(x), 1, -1, 2)),
    "for two": lambda: Call(lambda x: x.reshape(2, -1, 4, 4).reshape(-1, 1, 4, 4)),
    "noise": lambda: Call(lambda x: x + torch.randn_like(x)),
    "buffers move": lambda: Moving("always"),
    "buffer grows": lambda: Moving("grows"),
    "buffer replaced": lambda: Moving("replaced"),
    "buffer retyped": lambda: Moving("retyped"),
    "buffer moves without a gradient": lambda: Moving("without"),
    "huge": lambda: Call(lambda x: 1e30 * x),
    "tiny": lambda: Call(lambda x: 1e-40 * x),
    "nan": lambda: Call(lambda x: x * torch.nan),
    "seeds": lambda: Call(lambda x: (torch.manual_seed(1), x)[1]),
}
LAST: dict[str, Callable] = {
    "logits": lambda z: z,
    "tuple": lambda z: (z, "more"),
    "list": lambda z: [z],
    "dict": lambda z: {"logits": z, "loss": None},
    "other dict": lambda z: {"scores": z},
    "object": lambda z: SimpleNamespace(logits=z),
    "object of nothing": lambda z: SimpleNamespace(logits=None),
    "words": lambda z: Words("seven"),
    "nothing": lambda z: None,
    "empty tuple": lambda z: (),
    "no classes": lambda z: z[:, :0],
    "one class": lambda z: z[:, :1],
    "three classes": lambda z: z[:, :3],
    "as many as images": lambda z: z[:, : min(len(z), CLASSES)],
    "many": lambda z: z.repeat(1, 500),
    "fewer rows": lambda z: z[:-1],
    "first rows": lambda z: z[:4],
    "three dims": lambda z: z[..., None],
    "a number": lambda z: z.sum(),
    "complex": lambda z: torch.complex(z.float(), z.float()),
    "sparse": lambda z: z.to_sparse(),
    "quantised": lambda z: torch.quantize_per_tensor(z.float(), 0.1, 0, torch.qint8),
    "nested": lambda z: torch.nested.nested_tensor([row for row in z]),
    "meta": lambda z: z.to("meta"),
    "bool": lambda z: z > 0,
    "without graph": lambda z: z.detach().requires_grad_(),
    "infinite": lambda z: z / 0,
    "view of one": lambda z: z[:1].expand(len(z), -1),
    "argmax": lambda z: nn.functional.one_hot(z.argmax(1), CLASSES),
    "global noise": lambda z: z + torch.rand(len(z), 1) * torch.arange(CLASSES),
    "no rows alone": lambda z: z if len(z) > 1 else z[:0],
    "module": lambda z: nn.Linear(2, 2),
    "itself": lambda z: {"logits": {"logits": z}},
}
ERRORS = [RuntimeError("a\nb"), SystemExit(3), GeneratorExit(), RecursionError(), MemoryError(), StopIteration(1), KeyError("x")]
ERRORS += [AssertionError("underflow"), type("Odd", (Exception,), {"__str__": raising(ValueError())})(), StopAsyncIteration(), Mistake("m")]


def attributed(name: str, value: object) -> Callable:
    def strange(model: nn.Module) -> nn.Module:
        object.__setattr__(model, name, value)
        return model

    return strange


def classed(**methods: object) -> Callable:
    def strange(model: nn.Module) -> nn.Module:
        model.__class__ = type("Strange", (type(model),), methods)
        return model

    return strange


def gets(error: BaseException) -> Callable:
    def getattribute(self, name):
        if name in ("features", "pretrained_cfg", "default_cfg", "draws", "single", "facts"):
            raise error
        return nn.Module.__getattr__(self, name)

    return classed(__getattr__=getattribute)


def hooked(where: str, error: BaseException) -> Callable:
    def strange(model: nn.Module) -> nn.Module:
        getattr(model, where)(raising(error))
        return model

    return strange


def filled(value: float) -> Callable:
    def strange(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] = value
        return model

    return strange


def with_part(name: str, part: Callable[[], object]) -> Callable:
    def strange(model: nn.Module) -> nn.Module:
        setattr(model, name, part())
        return model

    return strange


def with_buffer(make: Callable[[], Tensor]) -> Callable:
    def strange(model: nn.Module) -> nn.Module:
        model.register_buffer("odd", make())
        return model

    return strange


def integers(model: nn.Module) -> nn.Module:
    model.whole = nn.Parameter(torch.arange(3), requires_grad=False)
    return model


def inferred(model: nn.Module) -> nn.Module:
    with torch.inference_mode():
        for part in model.modules():
            for name, parameter in list(part._parameters.items()):
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
    return model


def scripted(model: nn.Module) -> nn.Module:
    return torch.jit.trace(model, X[:2], check_trace=False)


STRANGE: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda model: model,
    "no length": classed(__len__=lambda self: 0),
    "no truth": classed(__bool__=raising(ValueError("no truth"))),
    "no words": classed(__repr__=raising(ValueError("no words"))),
    "no copy": classed(__deepcopy__=raising(ValueError("no copy"))),
    "no state": classed(state_dict=raising(ValueError("no state"))),
    "no parameters": classed(named_parameters=raising(ValueError("none"))),
    "no place": classed(to=raising(ValueError("stays"))),
    "own call": classed(__call__=lambda self, x: self.forward(x)),
    **{f"attributes that raise {type(error).__name__}": gets(error) for error in ERRORS[:6]},
    **{f"raises {type(error).__name__}": classed(forward=raising(error)) for error in ERRORS},
    **{f"{where} raises": hooked(where, OSError("hook")) for where in ("register_forward_hook", "register_forward_pre_hook")},
    "backward hook raises": hooked("register_full_backward_hook", OSError("hook")),
    "endless": classed(forward=lambda self, x: endless(x)),
    **{
        f"part {name}": with_part(name, lambda: nn.Linear(2, 2)) for name in ("model", "normalise", "features", "facts", "dtype", "classes")
    },
    "features of words": with_part("features", lambda: lambda x: "h"),
    "features that end it": with_part("features", lambda: raising(SystemExit(1))),
    "features for sixteen": with_part("features", lambda: lambda x: x.flatten(1) if len(x) == N else 1 / 0),
    "configured": with_part("pretrained_cfg", lambda: {"mean": (0.5,), "std": (0.5,)}),
    "misconfigured": with_part("pretrained_cfg", lambda: {"mean": ("x", None), "std": (0, 1)}),
    "without __init__": lambda model: type("Bare", (nn.Module,), {"__init__": lambda self: None})(),
    "training is missing": lambda model: (model.__dict__.pop("training"), model)[1],
    "nan weight": filled(torch.nan),
    "inf weight": filled(torch.inf),
    "whole numbers": integers,
    "inference parameters": inferred,
    "scripted": scripted,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "in half": lambda model: model.half(),
    "in double": lambda model: model.double(),
    "frozen": lambda model: model.requires_grad_(False),
    "sparse buffer": with_buffer(lambda: torch.eye(3).to_sparse()),
    "complex buffer": with_buffer(lambda: torch.ones(2, dtype=torch.complex64)),
    "quantised buffer": with_buffer(lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)),
    "nan buffer": with_buffer(lambda: torch.tensor(torch.nan)),
    "float8 buffer": with_buffer(lambda: torch.ones(2).to(torch.float8_e4m3fn)),
    "empty buffer": with_buffer(lambda: torch.zeros(0)),
    "training": lambda model: model.train(),
    "holds itself": attributed("myself", None),
}


@st.composite
def recipes(draw) -> tuple[list[str], str, str]:
    """Mostly one fault, sometimes several: many at once would all be refused for the first."""
    layers = draw(st.lists(st.sampled_from(list(LAYERS)), max_size=3))
    last = draw(st.one_of(st.just("logits"), st.sampled_from(list(LAST))))
    return layers, last, draw(st.one_of(st.just("plain"), st.sampled_from(list(STRANGE))))


def composed(layers: list[str], last: str, strange: str) -> nn.Module:
    with construct(0, "drawn"):
        head = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
        made = nn.Sequential(*(LAYERS[name]() for name in layers), Call(lambda x: x.float()), head, Call(LAST[last]))
        return STRANGE[strange](made.eval())


def counted(model: nn.Module) -> float:
    """The clean accuracy, by hand."""
    dtype = next((p.dtype for p in [*model.parameters(), *model.buffers()] if p.is_floating_point()), torch.float32)
    with torch.no_grad():
        z = logits_of(model(X.clone().to(dtype)))
    z = z.dequantize() if z.is_quantized else z.to_dense() if z.is_sparse else z
    return (z.float().argmax(1) == Y).double().mean().item()


def judge(layers: list[str], last: str, strange: str) -> None:
    own, grad = X.clone(), torch.is_grad_enabled()
    try:
        model = composed(layers, last, strange)
    except Exception:  # such a model cannot be made: nobody brings it
        return
    try:
        model = _placed(model, torch.device("cpu"))
        found = evaluate(model, None, _as_taken(model, X), Y, ThreatModel(norm="linf", eps=0.1), SUITE, (0, "drawn"))
        digest = _digest(subject(model, X), X)
    except MemoryError:  # a sentence of the command line alone, because a smaller batch may be the answer to it
        assert strange == "raises MemoryError"
    except Mistake as mistake:
        (sentence,) = mistake.messages
        assert sentence.count("\n") == 0 and sentence.startswith(("model: ", "labels: ", "m")), sentence
    else:
        by_chance = found.declared.randomised * 3 * (2 * 0.25 / FRESH / len(X)) ** 0.5  # its points are judged over fresh draws
        assert 0 <= found.worst_case <= found.clean + by_chance <= 1 + by_chance and len(digest) >= 64
        if not found.declared.randomised:
            assert found.clean == pytest.approx(counted(model))
        else:
            assert RANDOM & {*layers, last}
    finally:
        assert torch.is_grad_enabled() is grad, "left as it was"
    assert torch.equal(X, own), "the caller's images stay what they were"


@pytest.fixture(autouse=True, scope="module")
def cheap():
    """What is tried where there is no gradient, in next to no queries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robustness, "Adaptive", partial(Adaptive, **CHEAP))
        patch.setattr(surrogate, "EPOCHS", 1)
        yield


RUN = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)


@pytest.mark.slow
@settings(RUN, max_examples=700)
@given(recipes())
def test_many_drawn_models_are_judged_or_refused(recipe):
    judge(*recipe)


@settings(RUN, max_examples=60)
@given(recipes())
def test_a_drawn_model_is_judged_or_refused(recipe):
    judge(*recipe)
