"""The gate on real models, trained and attacked here: one that masks its gradient is refused, a better one becomes champion."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import fit
from test_registry import build, store

from basin.config import params
from basin.data import splits
from basin.data.about import load_about
from basin.evaluation import outcomes, robustness
from basin.models import artifact, recipe
from basin.models.classifier import Classifier
from basin.registry import registration
from basin.threat.ball import ThreatModel

NAME = "digits-linf-0.1"
ENTRY = """
    backbone: {kind: convnet, channels: [8, 16], hidden: 32}
    training: {kind: natural}
    schedule: {epochs: 1, batch: 32, optimiser: adam, rate: 0.01}"""
PARAMS = f"""
seed: 0
data: {{kind: digits, test_limit: 100}}
threat: {{norm: linf, eps: 0.1}}
backbone:
  natural: {ENTRY}
  masked: {ENTRY}
  robust: {ENTRY}
suites:
  short: {{attacks: {{fgsm: {{kind: fgsm}}, pgd: {{kind: pgd, steps: 10, step: 0.25}}}}}}
attack: {{models: [backbone/natural], suites: [short], images: 100}}
"""


def trained(settings: params.Config, name: str, **how) -> Classifier:
    model = build(settings, f"backbone/{name}").train()
    return fit(model, splits.load_split(Path("data/prepared"), "train"), **how).eval().requires_grad_(False)


def attacked(settings: params.Config, name: str, model: Classifier) -> None:
    """The model and its outcomes as stages write them."""
    artifact.save(Path("models/backbone") / name, model)
    test, about, suite = (
        splits.load_split(Path("data/prepared"), "test"),
        load_about(Path("data/prepared")),
        settings.suites["short"],
    )
    ball = ThreatModel.of(settings.threat)
    found = robustness.evaluate(model, None, test.floats(), test.labels, ball, suite, (0, name))
    described = {"model": f"backbone/{name}", "suite": "short", "data": about.name, "data_digest": about.digest, "seed": 0, "from": None}
    outcomes.write(Path("outcomes/backbone") / name / "short", found.outcomes, ball, described | vars(found.diagnosis))


def register(*names: str) -> dict[str, dict[str, str]]:
    """Register these models; model -> its version's tags."""
    text = PARAMS.replace("[backbone/natural]", f"[{', '.join(f'backbone/{name}' for name in names)}]")
    Path("params.yaml").write_text(text)
    digests = {f"backbone/{name}": recipe.weights_digest(Path("models/backbone") / name)[:32] + ".dir" for name in names}
    registration.register_all(params.load(), digests)
    return {version.tags["model"].split("/")[1]: version.tags for version in store().search_model_versions(f"name = '{NAME}'")}


def champion() -> str:
    return str(store().get_model_version_by_alias(NAME, "champion").version)


@pytest.fixture
def settings(tmp_path, monkeypatch) -> params.Config:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS)
    found = params.load()
    splits.prepare(found.source.module.read(found.source.params), found.splits, "digits", "digits", 0, Path("data/prepared"))
    return found


@pytest.mark.slow
def test_a_masked_model_is_refused_and_a_better_one_becomes_champion(settings, tmp_path_factory):
    natural = trained(settings, "natural", epochs=4)
    attacked(settings, "natural", natural)
    assert register("natural")["natural"]["standing"] == "champion"

    masked = trained(settings, "masked", epochs=4)
    with torch.no_grad():
        for last in [module for module in masked.modules() if isinstance(module, torch.nn.Linear)][-1:]:
            last.weight *= 10_000  # the same predictions; the softmax saturates, and its gradient is zero
            last.bias *= 10_000
    attacked(settings, "masked", masked)
    tags = register("natural", "masked")
    assert float(tags["masked"]["worst_case"]) > float(tags["natural"]["worst_case"]) + 0.1
    assert tags["masked"]["standing"] == "unreliable" and "vanishing-gradient" in tags["masked"]["reasons"]
    assert tags["natural"]["standing"] == "champion" and champion() == "1"

    attacked(settings, "robust", trained(settings, "robust", epochs=8, kind="pgd", steps=5, step=0.4))
    tags = register("natural", "masked", "robust")
    assert tags["robust"]["standing"] == "champion" and "against version 1 (backbone/natural)" in tags["robust"]["reasons"]
    assert tags["natural"]["standing"] == "challenger" and tags["masked"]["standing"] == "unreliable"
    assert champion() == "3"

    decisions = registration.promote(params.load(), dry_run=True)
    assert {name: one.standing for name, one in decisions.items()} == {
        "version 1 (backbone/natural)": "challenger",
        "version 2 (backbone/masked)": "unreliable",
        "version 3 (backbone/robust)": "champion",
    }
    assert elsewhere(tmp_path_factory.mktemp("second project")) == {"clean": float(tags["robust"]["clean"]), "same": 100}


SECOND_PROJECT = f"""
import csv, json, mlflow, numpy
from safetensors.numpy import load_file
where = mlflow.artifacts.download_artifacts("models:/{NAME}@champion") + "/outcomes/backbone/robust/short/"
rows, points = list(csv.DictReader(open(where + "outcomes.csv"))), load_file(where + "adversarial.safetensors")
model = mlflow.pyfunc.load_model("models:/{NAME}@champion")
clean, adversarial = (model.predict(points[name]).argmax(1) for name in ("clean", "images"))
right = [int(row["label"]) for row in rows] == clean
same = [int(row["adversarial"]) for row in rows] == adversarial
print(json.dumps({{"clean": float(right.mean()), "same": int(same.sum())}}))
"""


def elsewhere(folder: Path) -> dict[str, float]:
    """What a process without the checkout computes from the version alone: clean accuracy, adversarial predictions that are as recorded."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{Path.cwd()}/mlflow.db"
    done = subprocess.run([sys.executable, "-c", SECOND_PROJECT], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
