"""`basin evaluate`: a model and images from anywhere, judged by the same suites as a model that was trained here."""

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from pipeline import artifact
from pipeline.data import Split, load_split
from pipeline.errors import Mistake, did_you_mean
from pipeline.lookup import choose
from pipeline.outcomes import measures
from pipeline.robustness import evaluate
from pipeline.suite import Suite
from pipeline.threat import ThreatModel

SUITES: dict[str, dict[str, Any]] = {
    "quick": {"attacks": {"fgsm": {"kind": "fgsm"}, "pgd": {"kind": "pgd", "steps": 20, "step": 0.1}}},
    "standard": {
        "attacks": {
            "apgd_ce": {"kind": "apgd", "loss": "ce", "steps": 100},
            "apgd_dlr_targeted": {"kind": "apgd", "loss": "dlr_targeted", "steps": 100, "targets": 9},
            "fab": {"kind": "fab", "targets": 9},
            "square": {"kind": "square", "queries": 5000},
        }
    },
    "adaptive": {"adaptive": {"steps": 100, "targets": 9, "queries": 5000}},
}


def suite(name: str) -> Suite:
    """The ready-made suite of that name. Raises Mistake on another name."""
    if name not in SUITES:
        raise Mistake(f"--suite: no such suite (got {name!r}). {did_you_mean(name, SUITES)}")
    return Suite.model_validate(SUITES[name])


def threat(norm: str, eps: str) -> ThreatModel:
    """The threat model of the command line's words. Raises Mistake on one that is none."""
    try:
        return ThreatModel.model_validate({"norm": norm, "eps": eps})
    except ValidationError as error:
        raise Mistake(*(f"--{e['loc'][0]}: {_got(e['msg'], e['input'])}" for e in error.errors())) from None


def _got(message: str, value: Any) -> str:
    what, _, advice = message.partition(". ")
    return f"{what[0].lower()}{what[1:]} (got {value!r}). {advice}"


def model(target: str, registered: Callable[[str], nn.Module]) -> tuple[nn.Module, nn.Module | None]:
    """The model that TARGET names and its undefended twin where it has one.

    TARGET: `models:/name@alias` or `models:/name/version` (given to `registered`), a model folder, or `file.py:function`, whose
    function takes nothing and returns an nn.Module in evaluation mode. Raises Mistake where there is none.
    """
    if target.startswith("models:/"):
        return registered(target.removeprefix("models:/")), None
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
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(make := getattr(module, function, None)):
        raise Mistake(f"TARGET: {path}: no such function (got {function!r}). {did_you_mean(function, vars(module))}")
    if not isinstance(made := make(), nn.Module):
        raise Mistake(f"TARGET: {path}:{function} should return an nn.Module on images in [0, 1] (got {type(made).__name__}). Return one.")
    return made


def images(data: str) -> Split:
    """The test images of DATA: a prepared folder, an .npz file, or a folder of images (docs/data.md); all where none are set apart."""
    path = Path(data)
    if (path / "test.safetensors").is_file():
        return load_split(path, "test")
    kind, key = ("npz", "file") if path.suffix == ".npz" else ("folder", "folder")
    choice = choose("sources", {"kind": kind, key: data})
    source = choice.module.read(choice.params)
    return source.test or source.train


def run(
    target: str, data: str, threat: ThreatModel, name: str, number: int | None, seed: int, registered: Callable[[str], nn.Module]
) -> dict[str, Any]:
    """The JSON of `basin evaluate`; accuracies are fractions in [0, 1], `attacks` has the robust accuracy after each."""
    chosen, split = suite(name), images(data)
    split = split.take(torch.arange(min(number or len(split), len(split))))
    classifier, twin = model(target, registered)
    started = time.monotonic()
    for one in filter(None, (classifier, twin)):
        one.requires_grad_(False)
    result = evaluate(classifier, twin, split.floats(), split.labels, threat, chosen, (seed, "evaluate"))
    numbers = measures(result.outcomes)
    return {
        "target": target, "data": data, "threat": threat.model_dump(), "suite": name, "seed": seed, "n": numbers["n"],
        "clean": numbers["clean"], "worst_case": numbers["robust"], "interval": numbers["interval"], "attacks": numbers["attacks"],
        "masked": numbers["masked"], "ensemble": numbers["ensemble"], "flags": result.diagnosis.flags, "probes": result.diagnosis.probes,
        "declared": vars(result.declared), "passes": numbers["passes"], "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
