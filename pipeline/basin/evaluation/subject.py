"""What a model that somebody brings is, and how it is called: the one place that decides. Nobody after it asks again.

A `Subject` maps float32 images in [0, 1] to float32 logits, whatever the model inside takes and gives. It leaves every part of the model in
the mode that its owner chose, hands it a copy of the images, and undoes what is wrapped around the logits. A model whose answers carry no
gradient gets one that is zero: its value is judged as it is, and what has to find a way without a gradient sees that it must.

Looking at a model takes a few passes over a few images. What cannot be judged is refused in one sentence.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from basin.errors import Mistake
from basin.models.classifier import Classifier, Normalise
from basin.types import Images

CALLS = 3  # passes in which a model's own state has to stay what it is


class Subject(nn.Module):
    """A model from outside. `facts` are what was found of it, in words; `features` is there where the model has some of use."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, normalise: nn.Module | None, facts: list[str]):
        super().__init__()
        self.model, self.dtype, self.normalise, self.facts = model, dtype, normalise, facts
        self.differentiable = True
        self.training = False  # this module alone: `eval()` would reach into the model

    def forward(self, images: Images) -> Tensor:
        if self.differentiable:
            return logits_of(self.model(self._given(images))).float()
        with torch.no_grad():
            z = logits_of(self.model(self._given(images.detach()))).float().clone()
        return z + 0 * images.flatten(1).sum(1, keepdim=True)

    def _given(self, images: Images) -> Tensor:
        """What the model gets: a copy, which it may write into."""
        x = images.clone() if self.normalise is None else self.normalise(images)
        return x.to(self.dtype)


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


def subject(model: nn.Module, images: Images, normalise: nn.Module | None = None) -> nn.Module:
    """The model as everything after this calls it; one made here is that already. `images` are a few, on the model's device.

    Raises Mistake where it cannot be judged.
    """
    if isinstance(model, Classifier | Subject):
        return model
    _check_parts(model)
    one = Subject(model, dtype_of(model), normalise, [])
    before = state(model)
    _check_answer(_called(one, images[:2]), images[:2])
    for _ in range(CALLS - 1):
        _called(one, images)
    _check_state(model, before)
    one.facts += _facts(model, one, images)
    one.differentiable = (why := _no_gradient(one, images)) is None
    if why:
        one.facts.append(f"no gradient ({why})")
    elif usable := _features(one, images):
        one.features = usable  # type: ignore[assignment]
    return one


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type that its images want: that of its first floating parameter or buffer."""
    tensors = [*model.parameters(), *model.buffers()]
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)


def device_of(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))


def state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, also those that are not saved."""
    return {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def _check_parts(model: nn.Module) -> None:
    if model.training:
        raise Mistake("model: is in training mode (got model.training = True). Call model.eval() first.")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise Mistake(f"model: {name} has no shape yet (got {type(tensor).__name__}). Pass images through the model once before.")
        if tensor.is_meta:
            raise Mistake(f"model: {name} holds no numbers (got a tensor on the meta device). Load the model's weights first.")


def _called(one: Subject, images: Images) -> Tensor:
    """The model's logits, with no gradient. Raises Mistake on whatever it raises."""
    try:
        with torch.no_grad():
            return one(images)
    except Mistake:
        raise
    except (Exception, SystemExit) as error:
        got = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise Mistake(f"model: cannot take float32 images {list(images.shape)} (got {got}). Give the images that it is for.") from error


def _check_answer(z: Tensor, images: Images) -> None:
    if z.ndim != 2 or len(z) != len(images) or z.shape[1] < 2:
        what = f"{str(z.dtype).removeprefix('torch.')} {list(z.shape)}"
        raise Mistake(f"model: should give logits [n, classes] (got {what} for {len(images)} images). Mend its forward pass.")
    if not z.isfinite().all():
        raise Mistake("model: should give finite logits (got values that are not). Mend its forward pass.")


def _check_state(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Refuse a model that changes while it is looked at; what changed is put back."""
    now = dict([*model.named_parameters(), *model.named_buffers()])
    moved = [name for name, was in before.items() if name in now and not torch.equal(now[name].nan_to_num(), was.nan_to_num())]
    with torch.no_grad():
        for name in moved:
            now[name].copy_(before[name])
    if moved:
        part = model.get_submodule(moved[0].rpartition(".")[0])
        advice = "Call model.eval() on every part" if part.training else "Let the forward pass write into no buffer"
        kind = "a batch normalisation in training mode" if isinstance(part, _BatchNorm) and part.training else type(part).__name__
        raise Mistake(f"model: changes while it is judged (got another {moved[0]}, of {kind}, after {CALLS} passes). {advice}.")


def _facts(model: nn.Module, one: Subject, images: Images) -> list[str]:
    """What is worth saying of a model that can be judged."""
    facts = [f"computes in {str(one.dtype).removeprefix('torch.')}"] if one.dtype != torch.float32 else []
    if parts := [name for name, part in model.named_modules() if name and part.training and not list(part.children())]:
        facts.append(f"in training mode inside: {_listed(parts)}")
    if broken := [name for name, tensor in state(model).items() if tensor.is_floating_point() and not tensor.isfinite().all()]:
        facts.append(f"weights that are not finite: {_listed(broken)}")
    with torch.no_grad():
        x = one._given(images)
        given = x.clone()
        answer = model(x)
    if not torch.equal(x, given):
        facts.append("writes into its images (it gets copies)")
    if not isinstance(answer, Tensor):
        facts.append(f"logits taken out of {type(answer).__name__}")
    if one.normalise is None and (own := own_normalisation(model)):
        facts.append(f"names a mean {own[0]} and std {own[1]} that are not applied (--normalise model applies them)")
    return facts


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def own_normalisation(model: nn.Module) -> tuple[list[float], list[float]] | None:
    """The mean and std that a model says its images want, as timm's models do (`pretrained_cfg`, `default_cfg`)."""
    for name in ("pretrained_cfg", "default_cfg"):
        about = getattr(model, name, None)
        about = about if isinstance(about, Mapping) else vars(about) if hasattr(about, "__dict__") else {}
        mean, std = about.get("mean"), about.get("std")
        if isinstance(mean, list | tuple) and isinstance(std, list | tuple) and len(mean) == len(std):
            return list(map(float, mean)), list(map(float, std))
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
        return Normalise(*own)
    try:
        mean, std = ([float(number) for number in part.split(",")] for part in asked.split("/"))
    except ValueError:
        raise Mistake(f"--normalise: not a mean and a std (got {asked!r}). Write e.g. 0.485,0.456,0.406/0.229,0.224,0.225.") from None
    if len(mean) != len(std) or not all(s > 0 for s in std):
        raise Mistake(f"--normalise: one positive std for each mean is needed (got {asked!r}). Write e.g. 0.5/0.25.")
    return Normalise(mean, std)


def _no_gradient(one: Subject, images: Images) -> str | None:
    """Why the logits have no gradient with respect to the images; None where they have one."""
    x = images.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            z = one(x)
            if not z.requires_grad:
                return "the forward pass cuts it off"
            (g,) = torch.autograd.grad(z.sum(), x, allow_unused=True)
    except AssertionError:  # the adjoint of an ODE that overflows on its way back: basin/threat/target.py
        return None
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:120]
    return "the forward pass cuts it off" if g is None else None


def _features(one: Subject, images: Images) -> Callable[[Images], Tensor] | None:
    """The model's `features` as a function of images, where it is one whose gradient reaches them."""
    own = getattr(one.model, "features", None)
    if not callable(own):
        return None

    def features(x: Images) -> Tensor:
        return own(one._given(x)).float()

    x = images.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            h = features(x)
            torch.autograd.grad(h.sum(), x)
    except Exception:  # whatever it is, it is not what an attack could use
        return None
    return features if h.ndim > 1 and len(h) == len(images) else None
