"""What a model that somebody brings is, and how it is called: the one place that decides. Nobody after it asks again.

A `Subject` maps float32 images in [0, 1] to float32 logits, whatever the model inside takes and gives. It leaves every part of the model in
the mode that its owner chose, hands it a copy of the images, and undoes what is wrapped around the logits. A model whose answers carry no
gradient gets one that is zero: its value is judged as it is, and what has to find a way without a gradient sees that it must. Whatever it
raises, and any answer that is no logits, is a Mistake at every call.

Looking at a model takes a few passes over a few images. What cannot be judged is refused in one sentence.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from basin.errors import THEIRS, Mistake, refusing, said
from basin.evaluation.rounding import differs
from basin.models.classifier import Classifier, Normalise
from basin.types import Images

CALLS = 3  # passes in which a model's own state has to stay what it is


class Subject(nn.Module):
    """A model from outside. `facts` are what was found of it, in words; `features` is there where the model has some of use; `eps` is that
    of the coarsest type that its images and logits have."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, normalise: nn.Module | None, facts: list[str]):
        super().__init__()
        self.model, self.dtype, self.normalise, self.facts = model, dtype, normalise, facts
        self.differentiable, self.classes, self.eps = True, 0, torch.finfo(dtype).eps  # no class seen yet
        self.training = False  # this module alone: `eval()` would reach into the model

    def forward(self, images: Images) -> Tensor:
        advice = "Give the images that it is for, or fewer at once (--batch) where their number is too large for it."
        with refusing(f"model: cannot take float32 images {list(images.shape)}", advice):
            with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
                answer = dense(logits_of(self.model(self.given(images))))
            self._check(answer, len(images))
            z = answer.to(torch.float32, copy=True)
        return z + 0 * images.flatten(1).sum(1, keepdim=True) if images.requires_grad else z

    def given(self, images: Images) -> Tensor:
        """What the model gets: a copy, which it may write into."""
        x = images.clone() if self.normalise is None else self.normalise(images)
        return x.to(self.dtype)

    def _check(self, z: Tensor, n: int) -> None:
        what = f"{str(z.dtype).removeprefix('torch.')} {list(z.shape)}"
        if z.ndim != 2 or len(z) != n or z.shape[1] < 2 or z.is_complex():
            raise Mistake(f"model: should give logits [n, classes] (got {what} for {n} images). Mend its forward pass.")
        if z.shape[1] != (self.classes or z.shape[1]):
            raise Mistake(f"model: should give one number of classes (got {self.classes}, then {what}). Mend its forward pass.")
        self.classes = z.shape[1]
        if z.is_floating_point():
            self.eps = max(self.eps, torch.finfo(z.dtype).eps)


def logits_of(answer: Any) -> Tensor:
    """The logits in a model's answer: itself, `.logits` or ["logits"] of it, or the first of a tuple. Raises TypeError on anything else."""
    if isinstance(answer, Mapping) and "logits" in answer:
        answer = answer["logits"]
    elif not isinstance(answer, Tensor) and hasattr(answer, "logits"):
        answer = answer.logits
    elif isinstance(answer, tuple | list) and answer:
        answer = answer[0]
    if not isinstance(answer, Tensor):
        raise TypeError(f"its answer is {type(answer).__name__}, not logits")
    return answer


def dense(tensor: Tensor) -> Tensor:
    """The same numbers, laid out one after the other and not quantised."""
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def subject(model: nn.Module, images: Images, normalise: nn.Module | None = None) -> nn.Module:
    """The model as everything after this calls it; one made here is that already. `images` are a few, on any device.

    Raises Mistake where it cannot be judged.
    """
    if isinstance(model, Classifier | Subject):
        _check_mode(model)
        if normalise:
            raise Mistake(f"--normalise: the model has a normalisation already (got {type(model).__name__}). Leave --normalise out.")
        return model
    with refusing("model: cannot be looked at", "Mend it."):
        _check_parts(model)
        place, before = device_of(model), state(model)
        one = Subject(model, dtype_of(model), normalise and normalise.to(place), [])
        if isinstance(inside := attribute(model, "_orig_mod"), nn.Module):
            one = _uncompiled(one, inside, images.to(place))
        try:
            with torch.random.fork_rng([place] if place.type == "cuda" else []):
                _look(one, images.to(place))
        finally:
            moved = _put_back(model, before)
        if moved:
            raise Mistake(_unsteady(model, moved[0]))
    return one


@torch.no_grad()
def _uncompiled(one: Subject, inside: nn.Module, images: Images) -> Subject:
    """The module that torch.compile was given, where it gives the same logits: the compiler begins anew for each number of images."""
    plain = Subject(inside, one.dtype, one.normalise, ["compiled: judged as what was compiled, which gives the same logits"])
    return one if differs(one, one(images), plain(images)) else plain


def _look(one: Subject, images: Images) -> None:
    """A few passes, from which it learns what it is."""
    _check_channels(one.normalise, images)
    with torch.no_grad():
        if not one(images[:2]).isfinite().all():
            raise Mistake("model: should give finite logits (got values that are not). Mend its forward pass.")
        for _ in range(CALLS - 1):
            one(images)
    one.facts += _facts(one, images)
    one.differentiable = (why := _no_gradient(one, images)) is None
    if why:
        one.facts.append(f"no gradient ({why})")
    elif usable := _features(one, images):
        one.features = usable  # type: ignore[assignment]


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, also those that are not saved."""
    return dict([*model.named_parameters(), *model.named_buffers()])


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type that its images want: that of its first floating parameter or buffer."""
    return next((tensor.dtype for tensor in tensors(model).values() if tensor.is_floating_point()), torch.float32)


def device_of(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in tensors(model).values()), torch.device("cpu"))


def state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in tensors(model).items()}


def in_bytes(tensor: Tensor) -> Tensor:
    """[bytes]: of a tensor of any type, so that what is not a number is equal to itself."""
    return dense(tensor.detach()).reshape(-1).contiguous().view(torch.uint8)


def sha256(*of: Tensor) -> str:
    """Of the types, shapes and bytes of tensors, in their order."""
    digest = hashlib.sha256()
    for tensor in of:
        digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(in_bytes(tensor).cpu().numpy().data)
    return digest.hexdigest()


def weights(model: nn.Module) -> list[Tensor]:
    """Its parameters and buffers, in the order of their names."""
    return [tensor for _, tensor in sorted(tensors(model).items())]


def _check_parts(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise Mistake(f"model: should be a torch.nn.Module (got {type(model).__name__}). Call it in the forward pass of one.")
    _check_mode(model)
    for name, tensor in tensors(model).items():
        if is_lazy(tensor):
            raise Mistake(f"model: {name} has no shape yet (got {type(tensor).__name__}). Pass images through the model once before.")
        if tensor.is_meta:
            raise Mistake(f"model: {name} holds no numbers (got a tensor on the meta device). Load the model's weights first.")


def _check_mode(model: nn.Module) -> None:
    if training(model) and not _exported(model):
        raise Mistake("model: is in training mode (got model.training = True). Call model.eval() first.")


def training(model: nn.Module) -> bool:
    """Whether it is in training mode; a frozen TorchScript module has none."""
    return bool(attribute(model, "training"))


def _exported(model: nn.Module) -> bool:
    """Whether torch.export made it: its mode is the one that it was exported in, whatever `training` says, and `eval` an error."""
    return "eval" in vars(model)


def _check_channels(normalise: nn.Module | None, images: Images) -> None:
    """One mean of several, or several of one, would be stretched to fit without a word."""
    if isinstance(normalise, Normalise) and (means := normalise.mean.numel()) != images.shape[1]:
        raise Mistake(f"--normalise: a mean and a std for each channel are needed (got {means} for {images.shape[1]}). Give as many.")


def _put_back(model: nn.Module, before: Mapping[str, Tensor]) -> list[str]:
    """The names of what has changed, which is undone."""
    now = tensors(model)
    moved = [name for name, was in before.items() if name in now and not _same(now[name], was)]
    for name in moved:
        now[name].data = before[name]
    return moved


def _same(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype) and torch.equal(in_bytes(one), in_bytes(other))


def _unsteady(model: nn.Module, name: str) -> str:
    part = model.get_submodule(name.rpartition(".")[0])
    advice = "Call model.eval() on every part" if training(part) else "Let the forward pass write into no buffer"
    kind = "a batch normalisation in training mode" if isinstance(part, _BatchNorm) and training(part) else type(part).__name__
    return f"model: changes while it is judged (got another {name}, of {kind}, after a few passes). {advice}."


def _facts(one: Subject, images: Images) -> list[str]:
    """What is worth saying of a model that can be judged."""
    model = one.model
    facts = ["exported: in the mode that it was exported in"] if _exported(model) else []
    facts += [f"computes in {str(one.dtype).removeprefix('torch.')}"] if one.dtype != torch.float32 else []
    parts = [name for name, part in model.named_modules() if name and training(part) and not list(part.children())]
    if parts and not _exported(model):
        facts.append(f"in training mode inside: {_listed(parts)}")
    if broken := [name for name, tensor in tensors(model).items() if _is_broken(tensor)]:
        facts.append(f"weights that are not finite: {_listed(broken)}")
    with torch.no_grad():
        x = one.given(images)
        given = x.clone()
        answer = model(x)
    if not torch.equal(x, given):
        facts.append("writes into its images (it gets copies)")
    if not isinstance(answer, Tensor):
        facts.append(f"logits taken out of {type(answer).__name__}")
    if one.normalise is None and (own := own_normalisation(model)):
        facts.append(f"names a mean {own[0]} and std {own[1]} that are not applied (--normalise model applies them)")
    return facts


def _is_broken(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not bool(dense(tensor.detach()).float().isfinite().all())


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def own_normalisation(model: nn.Module) -> tuple[list[float], list[float]] | None:
    """The mean and std that a model says its images want, as timm's models do (`pretrained_cfg`, `default_cfg`)."""
    for name in ("pretrained_cfg", "default_cfg"):
        about = attribute(model, name)
        about = about if isinstance(about, Mapping) else vars(about) if hasattr(about, "__dict__") else {}
        own: tuple[Any, Any] = about.get("mean"), about.get("std")
        if all(isinstance(each, list | tuple) and all(isinstance(number, int | float) for number in each) for each in own):
            mean, std = own
            return list(map(float, mean)), list(map(float, std))
    return None


def attribute(model: nn.Module, name: str) -> Any:
    """What a model has by that name; None where it has none, or fails to say."""
    try:
        return getattr(model, name, None)
    except THEIRS:
        return None


def normalisation(asked: str | None, model: nn.Module) -> nn.Module | None:
    """The layer that `--normalise` asks for: nothing, `model` for what the model names itself, or MEAN,.../STD,... a channel each.

    Raises Mistake on words that say no such thing.
    """
    if asked is None:
        return None
    if asked == "model":
        if not (own := own_normalisation(model)):
            raise Mistake("--normalise: the model names no mean and std (got 'model'). Give them: MEAN,MEAN,MEAN/STD,STD,STD.")
        mean, std = own
    else:
        try:
            mean, std = ([float(number) for number in part.split(",")] for part in asked.split("/"))
        except ValueError:
            raise Mistake(f"--normalise: not a mean and a std (got {asked!r}). Write e.g. 0.485,0.456,0.406/0.229,0.224,0.225.") from None
    if len(mean) != len(std) or not all(s > 0 for s in std) or not all(map(math.isfinite, mean + std)):
        raise Mistake(f"--normalise: one positive std for each mean is needed (got {asked!r}). Write e.g. 0.5/0.25.")
    return Normalise(mean, std)


def _no_gradient(one: Subject, images: Images) -> str | None:
    """Why the logits have no gradient with respect to any of the images; None where they have one, or overflow on their way to it."""
    x = images.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            z = dense(logits_of(one.model(one.given(x))))
            g = torch.autograd.grad(z.sum(), x, allow_unused=True)[0] if z.requires_grad else None
    except AssertionError:  # the adjoint of an ODE that overflows on its way back: basin/threat/target.py
        return None
    except THEIRS as error:
        has_one = len(images) > 1 and any(_no_gradient(one, image[None]) is None for image in images)
        return None if has_one else said(error)
    return "the forward pass cuts it off" if g is None else None


def _features(one: Subject, images: Images) -> Callable[[Images], Tensor] | None:
    """The model's `features` as a function of images, where it is one whose gradient reaches them."""
    own = attribute(one.model, "features")
    if not callable(own):
        return None

    def features(x: Images) -> Tensor:
        with refusing("model: its features fail", "Mend them, or give them another name."):
            return own(one.given(x)).float()

    x = images.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            h = features(x)
            torch.autograd.grad(h.sum(), x)
    except THEIRS:  # whatever it is, it is not what an attack could use
        return None
    return features if h.ndim > 1 and len(h) == len(images) else None
