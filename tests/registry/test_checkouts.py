"""Every way in which one machine has a project twice, experiments too: `basin gc` in one takes nothing from another."""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from test_registry import NAME, aliases, store
from test_registry_upkeep import bytes_of, commit, do, made, other_place, run
from test_servers import SILENT
from typer.testing import CliRunner

from basin.cli.app import app
from basin.registry import registration, snapshot, upkeep

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
MODEL = "backbone/natural"
PARAMS = """
seed: 0
device: cpu
threads: 1
data: {kind: digits, train_limit: 200, test_limit: 40}
threat: {norm: linf, eps: 0.15}
backbone:
  natural:
    backbone: {kind: convnet, channels: [2], hidden: 8}
    training: {kind: natural}
    schedule: {epochs: 1, batch: 32, optimiser: adam, rate: 0.01}
suites:
  short: {attacks: {fgsm: {kind: fgsm}}}
attack: {models: [backbone/natural], suites: [short], images: 40}
registry: {name: null}
"""
DATA = [f"data/prepared/{name}" for name in ("train.safetensors", "validation.safetensors", "test.safetensors", "about.json")]
STAGES: dict[str, dict[str, Any]] = {
    "prepare": {"cmd": "prepare", "params": ["data", "seed"], "outs": DATA},
    "natural": {
        "cmd": "backbone natural", "params": ["backbone"], "deps": DATA, "outs": [f"models/{MODEL}", f"history/{MODEL}.csv"],
    },
    "attack": {"cmd": f"attack {MODEL} short", "deps": [f"models/{MODEL}"], "outs": [f"outcomes/{MODEL}/short"]},
    "register": {
        "cmd": "register", "deps": [f"models/{MODEL}", f"outcomes/{MODEL}/short"], "outs": [{"report/registered.json": {"cache": False}}],
    },
}  # fmt: skip


def dvc(*arguments: str) -> str:
    environment = {**SILENT, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "pipeline"))), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-P", "-m", "dvc", *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Real stages, run once and committed; DVC's cache lies beside it, for all checkouts."""
    (folder := tmp_path_factory.mktemp("one") / "project").mkdir()
    before = Path.cwd()
    os.chdir(folder)
    stages = {name: stage | {"cmd": f"{sys.executable} -m basin.stages.{stage['cmd']}"} for name, stage in STAGES.items()}
    Path("dvc.yaml").write_text(json.dumps({"stages": stages}))
    Path("params.yaml").write_text(PARAMS)
    Path(".gitignore").write_text("/.basin\n/mlflow.db\n/mlartifacts\n/data\n/models\n/history\n/outcomes\n/report\n")
    do("git", "init", "-q")
    do("git", "config", "user.name", "n")
    do("git", "config", "user.email", "e@example.org")
    dvc("init", "-q")
    dvc("config", "core.analytics", "false")
    dvc("cache", "dir", str(folder.parent / "cache"))
    dvc("repro", "-q")
    commit("the run")
    os.chdir(before)
    return folder


@pytest.fixture
def elsewhere(project, monkeypatch) -> Path:
    """Beside it."""
    for name in ("MLFLOW_TRACKING_URI", "BASIN_TRACKING"):
        monkeypatch.delenv(name, raising=False)
    other_place(project, monkeypatch)
    return project.parent


def basin(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def held(checkout: Path) -> dict[str, Any]:
    """What is its own: MLflow's files, and all that its database says."""
    with closing(sqlite3.connect(checkout / "mlflow.db")) as database:
        rows = hashlib.sha256("\n".join(database.iterdump()).encode()).hexdigest()
    return {"rows": rows} | {name: hashlib.sha256(content).hexdigest() for name, content in bytes_of(checkout / "mlartifacts").items()}


def test_gc_in_one_checkout_takes_nothing_from_another(project, elsewhere, monkeypatch):
    """The original, a copy, a moved copy, two clones and a git worktree, one cache of DVC for all."""
    places = {name: elsewhere / name for name in ("original", "copy", "moved", "clone", "another", "worktree")}
    for name in ("original", "copy", "before"):
        shutil.copytree(project, elsewhere / name, symlinks=True)
    (elsewhere / "before").rename(places["moved"])
    other_place(places["original"], monkeypatch)
    for name in ("clone", "another"):
        do("git", "clone", "-q", ".", str(places[name]))
    do("git", "worktree", "add", "-q", "--detach", str(places["worktree"]))
    for name, place in places.items():
        other_place(place, monkeypatch)
        if name in ("clone", "another", "worktree"):
            dvc("checkout", "-q")
            registration.register_all(*run())
        assert upkeep.verify(*run()) == [] and made("nobody") == 2
    for place in places.values():
        other_place(place, monkeypatch)
        others = {other: held(other) for other in places.values() if other != place}
        cache, own = bytes_of(elsewhere / "cache"), held(place)
        assert "1 versions removed." in basin("gc", "--yes") and len(held(place)) < len(own)
        assert upkeep.verify(*run()) == [] and {other: held(other) for other in others} == others
        assert bytes_of(elsewhere / "cache") == cache


def test_experiments_are_in_the_mlflow_of_their_checkout(project, elsewhere, monkeypatch):
    """Runs, versions and what the registry remembers; DVC deletes the workspace in which they were made."""
    project = shutil.copytree(project, elsewhere / "laboratory", symlinks=True)
    other_place(project, monkeypatch)
    dvc("exp", "run", "-q", "--temp", "--name", "temporary", "-S", "backbone.natural.schedule.epochs=2")
    dvc("exp", "run", "-q", "--queue", "--name", "queued", "-S", "backbone.natural.schedule.epochs=3")
    said = dvc("exp", "run", "--run-all")
    found = {int(version.version): version.tags["dvc.md5"] for version in store().search_model_versions(f"name = '{NAME}'")}
    assert sorted(found) == [1, 2, 3] and len(set(found.values())) == 3, said
    trained = store().search_runs(["1"], "tags.stage = 'backbone/natural'")
    assert sorted(one.data.params["schedule.epochs"] for one in trained) == ["1", "2", "3"]
    assert {one.info.status for one in trained} == {"FINISHED"} and all(str(project) in one.info.artifact_uri for one in trained)
    assert aliases()["natural"] == "1", "an experiment moves no name of the checkout's own models"
    assert {md5 for _, _, md5 in snapshot.promised()} == set(found.values()) and upkeep.verify(*run()) == []
    assert not list((project / ".basin/checkpoints").rglob("*.safetensors")) and not list((project / ".basin/runs").rglob("*.*"))
    assert made("nobody") == 4
    assert basin("gc", "--yes").splitlines() == [f"{NAME}/4  head/ode  nobody", "1 versions removed."], "DVC has the experiments"
    before = held(project)
    dvc("exp", "branch", "-q", "queued", "kept")
    dvc("exp", "apply", "-q", "temporary")
    assert held(project) == before, "both run nothing"
    assert f"{NAME}@natural: points to version 1 instead of 2" in basin("registry", "verify", code=1)
    dvc("repro", "-q")
    assert aliases()["natural"] == "2" and upkeep.verify(*run()) == []
