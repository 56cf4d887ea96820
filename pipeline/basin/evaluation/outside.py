"""`basin evaluate`: a model and images from anywhere, judged by the same suites as a model that was trained here."""

import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from basin import checkpoint, files
from basin.config import kinds
from basin.config.suite import READY, Suite, ready
from basin.config.threat import Threat
from basin.data.splits import Positions, in_proportion, load_split
from basin.errors import THEIRS, Mistake, did_you_mean, refusing, said
from basin.evaluation import outcomes
from basin.evaluation.classes import BALANCE
from basin.evaluation.outcomes import measures
from basin.evaluation.robustness import BATCH, LOOKED_AT, Result, check, evaluate
from basin.evaluation.subject import device_of, dtype_of, normalisation, sha256, subject, tensors, weights
from basin.models import artifact
from basin.randomness import generator, others_seeded
from basin.threat.ball import ThreatModel
from basin.types import Images, Labels

Models = tuple[nn.Module, nn.Module | None]  # and its undefended twin


def suite(asked: str | Suite) -> Suite:
    """The ready-made suite of that name, or the suite with what is ready-made in it. Raises Mistake on one that is none."""
    name = asked if isinstance(asked, str) else asked.ready
    if name is not None and name not in READY:
        raise Mistake(f"suite: no such suite (got {name!r}). {did_you_mean(name, READY)}")
    if isinstance(asked, str):
        return ready(asked)
    if bool(asked.attacks or asked.adaptive) == bool(name):
        got = f"its own attacks and {name!r}" if name else "neither"
        raise Mistake(f"suite: should hold attacks, or an adaptive table, or be ready-made (got {got}). Give one of them.")
    if asked.threat:
        raise Mistake(f"suite: has a threat of its own (got {asked.threat}). Give it as `threat`, with a suite that has none.")
    return ready(name, asked) if name else asked


def models(target: str, registered: Callable[[str], Models]) -> Models:
    """The model that TARGET names and its undefended twin where it has one.

    TARGET: `models:/name@alias` or `models:/name/version` (given to `registered`), a model folder, or `file.py:function`, whose
    function takes nothing and returns an nn.Module in evaluation mode. Raises Mistake where there is none.
    """
    if target.startswith("models:/"):
        return registered(target.removeprefix("models:/"))
    path, _, function = target.rpartition(":")
    if path.endswith(".py"):
        return _made(Path(path), function), None
    if not Path(target).is_dir():
        raise Mistake(f"TARGET: no such model (got {target!r}). Give models:/NAME@ALIAS, a model folder, or FILE.py:FUNCTION.")
    return artifact.load(target), artifact.load_twin(target)


def _made(path: Path, function: str) -> nn.Module:
    """What the function of a file of the user's own returns; running that file is what the user asks for."""
    if not path.is_file():
        raise Mistake(f"TARGET: no such file (got {str(path)!r}). Give FILE.py:FUNCTION.")
    spec = importlib.util.spec_from_file_location("basin_target", path)
    assert spec and spec.loader
    sys.modules["basin_target"] = module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # what lies beside it can be imported, as if it were run
    with _theirs(path):
        spec.loader.exec_module(module)
    if not callable(make := getattr(module, function, None)):
        raise Mistake(f"TARGET: {path}: no such function (got {function!r}). {did_you_mean(function, _functions(module))}")
    with _theirs(path):
        made = make()
    if not isinstance(made, nn.Module):
        raise Mistake(f"TARGET: {path}:{function} should return an nn.Module on images in [0, 1] (got {type(made).__name__}). Return one.")
    return made


@contextmanager
def _theirs(path: Path) -> Iterator[None]:
    """Whatever a file of the user's own raises, or that it ends the program, as its line and a sentence."""
    try:
        yield
    except Mistake:
        raise
    except THEIRS as error:
        frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, SyntaxError):
            frames.append((error.filename or "", error.lineno))
        lines = [line for file, line in frames if Path(file).resolve() == path.resolve()]
        line = f", line {lines[-1]}" if lines and lines[-1] else ""
        raise Mistake(f"TARGET: {path}{line}: cannot be used (got {said(error)}). Mend the file.") from error


def _functions(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if isinstance(value, FunctionType) and value.__module__ == module.__name__]


def images(data: str, number: int | None, seed: int) -> tuple[Images, Labels]:
    """Test images of DATA, float32 in [0, 1], and their labels; all images where no test split is set apart (docs/data.md).

    DATA: a prepared folder, whose first images are taken; or an .npz file or a folder of images, which may be sorted by class: of
    those, as many of each class in proportion are drawn. Raises Mistake where there are none, or fewer than `number`.
    """
    path = Path(data)
    if not data or not os.path.exists(path):
        raise Mistake(f"--data: no such file or folder (got {data!r}). Give a prepared folder, an .npz file, or a folder of images.")
    if path.is_file() and path.suffix.lower() != ".npz":
        raise Mistake(f"--data: a file of another kind (got {data!r}). Give a prepared folder, an .npz file, or a folder of images.")
    if path.suffix.lower() == ".npz":
        npz = kinds.find("sources", "npz")
        x, y = npz.exact(npz.Params(file=data))
        drawn = _drawn(number, y, seed)
        return x[drawn], y[drawn]
    if (path / "test.safetensors").is_file():
        split = load_split(path, "test")
        split = split.take(torch.arange(_number(number, split.labels)))
    else:
        folder = kinds.find("sources", "folder")
        source = folder.read(folder.Params(folder=data))
        split = source.test or source.train
        split = split.take(_drawn(number, split.labels, seed))
    return split.floats(), split.labels


def _drawn(number: int | None, labels: Labels, seed: int) -> Positions:
    """Positions, as many of each class in proportion."""
    return in_proportion(labels, torch.arange(len(labels)), generator(seed, "evaluate"))[: _number(number, labels)]


def _number(asked: int | None, labels: Labels) -> int:
    if asked and asked > len(labels):
        raise Mistake(f"--images: there are only {len(labels)} (got {asked}). Ask for {len(labels)} or fewer.")
    return asked or len(labels)


def run(
    target: str,
    data: str,
    threat: Threat,
    name: str,
    number: int | None,
    seed: int,
    registered: Callable[[str], Models],
    outcomes_folder: Path | None = None,
    device: str = "auto",
    normalise: str | None = None,
    thorough: bool = False,
    also: Sequence[Threat] = (),
    batch: int = BATCH,
) -> dict[str, Any]:
    """The JSON of `basin evaluate`; accuracies are fractions in [0, 1], `attacks` has the robust accuracy after each.

    Interrupted and called again, it goes on after the last finished attack. `outcomes_folder`: where each image's outcome is written;
    `device`: auto (a GPU if there is one), cpu or cuda; `normalise`: what the images are brought to first (basin/evaluation/subject.py);
    `thorough`: no shortcut (docs/evaluation.md); `also`: further threats, under which the same images are attacked by the same suite;
    `batch`: how many images are attacked at once, which is what bounds the memory.
    """
    chosen = suite(name).model_copy(update={"thorough": thorough})
    x, y = images(data, number, seed)
    classifier, twin = models(target, registered)
    started, place = time.monotonic(), _device(device)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    x = _as_taken(_placed(classifier, place), x)
    check(x, y)
    few = x[: min(LOOKED_AT, batch)]
    classifier = subject(classifier, few, normalisation(normalise, classifier))
    twin = None if twin is None else subject(_placed(twin, place), few)
    digests, drawn = [_digest(one, few) for one in (classifier, twin) if one is not None], sha256(x, y)
    results: dict[str, Result] = {}
    states: list[Path] = []
    for one in (threats := dict.fromkeys((threat, *also))):
        asked = [drawn, one.model_dump(), chosen.model_dump(mode="json"), seed, place.type, batch]
        states.append(state := checkpoint.place("evaluate", *digests, *asked))
        results[str(one)] = evaluate(classifier, twin, x, y, ThreatModel.of(one), chosen, (seed, "evaluate"), batch=batch, checkpoint=state)
    result = results[str(threat)]
    numbers = measures(result.outcomes)
    answer = {
        "target": target, "data": data, "threat": threat.model_dump(), "suite": name, "seed": seed, "device": place.type, "n": numbers["n"],
        "clean": numbers["clean"], "worst_case": numbers["robust"], "interval": numbers["interval"], "attacks": numbers["attacks"],
        "spared": numbers["spared"], "thorough": thorough,
        "masked": numbers["masked"], "ensemble": numbers["ensemble"], "flags": result.diagnosis.flags, "probes": result.diagnosis.probes,
        "facts": result.facts, "declared": vars(result.declared), "replaced": result.replaced, "passes": numbers["passes"],
    } | {name: numbers[name] for name in (*BALANCE, "uneven", "by_class")} | _side_by_side(results)  # fmt: skip
    if outcomes_folder:
        try:
            for one in threats:
                folder = outcomes_folder if one == threat else outcomes_folder / str(one)
                outcomes.write(folder, results[str(one)].outcomes, ThreatModel.of(one), answer)
        except files.Unwritten as unwritten:
            unwritten.kept = json.dumps(answer, indent=1)
            raise
    for state in states:
        state.unlink(missing_ok=True)
    return answer | {"seconds": round(time.monotonic() - started, 1)}


def _side_by_side(results: Mapping[str, Result]) -> dict[str, Any]:
    """Where there are several threats, what is found under each, and the union: an image counts as far as it holds under every one."""
    if len(results) == 1:
        return {}
    shares = torch.stack([one.outcomes.share for one in results.values()]).amin(0)
    found = {
        name: {"worst_case": one.worst_case, "interval": one.interval, "attacks": one.attacks, "flags": one.flags}
        for name, one in results.items()
    }
    return {"threats": found, "union": {"worst_case": outcomes.mean(shares), "interval": outcomes.interval(shares)}}


def _device(asked: str) -> torch.device:
    if asked not in ("auto", "cpu", "cuda"):
        raise Mistake(f"--device: no such device (got {asked!r}). Give auto, cpu or cuda.")
    if asked == "cuda" and not torch.cuda.is_available():
        raise Mistake("--device: there is no GPU here that torch can use (got 'cuda'). Give cpu, or auto for a GPU where there is one.")
    return torch.device("cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu")


def _placed(model: nn.Module, place: torch.device) -> nn.Module:
    """The model there, its parameters frozen where it lets them be."""
    with refusing(f"model: cannot be put on {place}", "Mend it."):
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        if any(tensor.is_meta for tensor in tensors(model).values()):
            return model  # refused in words where it is looked at
        return model.to(place)


def _as_taken(model: nn.Module, x: Tensor) -> Tensor:
    """The images; of grey ones that were read as colour one channel, where the model takes that and no colour."""
    grey = x.shape[1] == 3 and torch.equal(x[:, :1].expand_as(x), x)
    return x[:, :1].contiguous() if grey and not _takes(model, x[:1]) and _takes(model, x[:1, :1]) else x


@torch.no_grad()
def _takes(model: nn.Module, x: Tensor) -> bool:
    try:
        model(x.to(device_of(model), dtype_of(model), copy=True))
    except THEIRS:  # if it is not the colour, it is told when the model is looked at
        return False
    return True


def _digest(model: nn.Module, few: Images) -> str:
    """Of what a model is and computes: its layers, its tensors, and its logits of a few images."""
    with torch.no_grad(), others_seeded(0):
        logits = model(few.to(device_of(model)))
    try:
        layers = repr(model)
    except THEIRS:  # its own __repr__ fails
        layers = ""
    return layers + sha256(*weights(model), logits)
