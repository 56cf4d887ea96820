"""What each release wrote is read by every later one; what cannot be read says with which version it can.

`tests/years/VERSION/`: a model folder with its twin, the files of a version of the registry (outcomes among them), and a run as
`.basin/registry/` keeps it. They are never written again: a later release adds a folder of its own.
"""

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import torch

import basin
from basin import files
from basin.config import params
from basin.errors import Mistake
from basin.evaluation import outcomes
from basin.models import artifact, recipe
from basin.registry import contents, snapshot
from basin.report import outcomes as reading
from basin.report import summary

ROOT = Path(__file__).resolve().parents[2]
RELEASES = sorted(path for path in Path(__file__).parent.iterdir() if (path / "seal").exists())
LATER = {"format": 2, "basin": "9.1.0"}


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def release(request, tmp_path):
    return shutil.copytree(request.param, tmp_path / "release")


def test_a_model_of_a_release_is_loaded(release):
    model, twin = basin.load(release / "model"), artifact.load_twin(release / "model")
    x = torch.rand(3, *model.recipe["shape"], generator=torch.Generator().manual_seed(0))
    assert model(x).shape == twin(x).shape == (3, len(model.recipe["classes"])) and model(x).isfinite().all()
    assert (model.recipe["model"], twin.recipe["model"]) == ("head/ode", "backbone/natural")


def test_outcomes_of_a_release_are_read(release):
    one = reading.read(release / "version/outcomes", "head/ode", "quick")
    assert len(one.image) == one.summary.n == 10 and list(one.summary.attacks) == ["fgsm", "pgd"]
    clean, point = one.points(0)
    assert clean.shape == point.shape == (1, 8, 8) and abs(clean - point).max() <= 0.15 + 1e-6


def test_a_version_of_a_release_is_whole(release):
    seal = (release / "seal").read_text(encoding="utf-8").strip()
    shutil.copytree(release / "model", release / "version/artifacts/ode")
    changed = [name for name in contents.changed_files(release / "version", seal) if not name.startswith("code/")]
    assert changed == [] and contents.card_of(release / "version").startswith("head/ode: ")
    said = contents.manifest(release / "version")
    assert contents.changed(release / "version", said["tags"], said["metrics"]) == []


def test_a_run_of_a_release_is_brought_back(release, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "KEPT", release / "registry")
    (run,) = snapshot.kept()
    (there := tmp_path / "there").mkdir()
    settings, digests = run.open(there)
    assert isinstance(settings, params.Config) and digests["head/ode"] == "98f97a791ef1457579a5b7e88a495063.dir"
    assert list(snapshot.promised()) == [("digits-linf-0.15", "head/ode", digests["head/ode"])]


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


READ = {
    "model/recipe.json": lambda place: basin.load(place / "model"),
    "version/outcomes/head/ode/quick/summary.json": lambda place: reading.read(place / "version/outcomes", "head/ode", "quick"),
    "version/manifest.json": lambda place: contents.card_of(place / "version"),
}


@pytest.mark.parametrize("name", READ)
def test_what_a_later_release_wrote_says_which(name, release):
    edit(release / name, **LATER)
    with pytest.raises(Mistake) as mistake:
        READ[name](release)
    assert str(mistake.value) == f"{release / name}: this Basin, {files.VERSION}, reads format 1 (got '2'). Read it with Basin 9.1.0."
    edit(release / name, basin=None)
    with pytest.raises(Mistake, match="Read it with the Basin that wrote it."):
        READ[name](release)


def test_outcomes_and_manifests_of_before_there_were_formats_are_read(release):
    for name in ("version/outcomes/head/ode/quick/summary.json", "version/manifest.json"):
        text = json.loads((release / name).read_text(encoding="utf-8"))
        del text["format"], text["basin"]
        (release / name).write_text(json.dumps(text), encoding="utf-8")
        READ[name](release)


def test_the_version_is_the_packages_and_both_rooms_know_one_format():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert files.VERSION == project["version"] and (RELEASES[-1] / "seal").exists()
    assert summary.FORMAT == outcomes.FORMAT == contents.FORMAT == recipe.FORMAT == 1
