"""Upkeep: what was lost or changed is found and mended from DVC's cache; what is not needed goes; a run comes back into the workspace."""

import json
import os
import pickle
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking._tracking_service import utils
from test_registry import MODELS, NAME, PARAMS, aliases, retrain, store, workspace  # noqa: F401

from basin import files
from basin.config import params
from basin.errors import Mistake
from basin.registry import checkout, contents, lookup, needs, registration, removal, snapshot, upkeep, versions
from basin.tracking import client

DVC_YAML = {
    "prepare": [f"data/prepared/{name}" for name in ("train.safetensors", "validation.safetensors", "test.safetensors", "about.json")],
    **{model.replace("/", "-"): [f"models/{model}"] for model in MODELS},
    **{model.replace("/", "-") + "-short": [f"outcomes/{model}/short"] for model in MODELS},
}


def do(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dvc(*arguments: str) -> None:
    do(sys.executable, "-P", "-m", "dvc", "--quiet", *arguments)


def commit(message: str) -> None:
    do("git", "add", "-A")
    do("git", "-c", "user.name=n", "-c", "user.email=e@example.org", "commit", "-qm", message)


def run() -> tuple[params.Config, dict[str, str | None]]:
    settings = params.load()
    return settings, snapshot.digests(settings)


@pytest.fixture(scope="module")
def history(workspace, tmp_path_factory):  # noqa: F811
    """A project of git and DVC with two runs, both registered: one of a commit (versions 1, 2), one that is in none (version 3)."""
    folder, before = tmp_path_factory.mktemp("history"), Path.cwd()
    shutil.copytree(workspace, folder, dirs_exist_ok=True)
    os.chdir(folder)
    stages = {name: {"cmd": "false", "outs": outs} for name, outs in DVC_YAML.items()}
    Path("dvc.yaml").write_text(json.dumps({"stages": stages}))
    Path(".gitignore").write_text("/.basin\n/mlflow.db\n/mlartifacts\n/data\n/models\n/outcomes\n/report\n")
    do("git", "init", "-q")
    dvc("init")
    dvc("config", "core.analytics", "false")
    dvc("commit", "--force")
    commit("first run")
    registration.register_all(*run())
    retrain(run()[0], "head/ode", seed=1, held=35)
    dvc("commit", "--force")
    registration.register_all(*run())
    os.chdir(before)
    return folder


@pytest.fixture
def project(history, tmp_path, monkeypatch):
    """A copy of it to work in, as a person makes one."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "project"
    shutil.copytree(history, folder, symlinks=True)
    utils._artifact_repos_cache.clear()  # MLflow remembers where a model's files were
    monkeypatch.chdir(folder)
    return folder


def state() -> dict[str, Any]:
    """All that the registry says, but for ids, times and the time that a pass takes."""
    found = {}
    for version in store().search_model_versions(f"name = '{NAME}'"):
        numbers = {key: value for key, value in versions.metrics(store(), version).items() if not key.startswith("latency")}
        with versions.files(store(), version) as folder:
            files = {path: (folder / path).read_bytes() for path in ("card.md", "card.html", "examples.png")}
            files["manifest"] = json.loads((folder / "manifest.json").read_text())
            assert files["manifest"]["files"].pop("MLmodel") == contents.digest((folder / "MLmodel").read_bytes())
        described = re.sub("m-[0-9a-f]{32}", "MODEL", version.description)
        tags = {key: value for key, value in version.tags.items() if key != "seal"}  # MLmodel, which it seals, has ids and a time
        found[int(version.version)] = {"tags": tags, "metrics": numbers, "description": described, "files": files}
    return {"versions": found, "aliases": aliases()}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def other_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utils._artifact_repos_cache.clear()
    monkeypatch.chdir(folder)


def test_a_copied_checkout_leaves_the_original_alone(project, tmp_path, monkeypatch):
    """It reads, registers, removes and mends its own files, with the same versions and aliases; of the original not a byte changes."""
    before, original = state(), bytes_of(project)
    copy = tmp_path / "a copy, 100% ours"
    shutil.copytree(project, copy, symlinks=True)
    other_place(copy, monkeypatch)
    assert state() == before and upkeep.verify(*run()) == [] and lookup.load(f"{NAME}@champion")
    with versions.files(store(), store().get_model_version(NAME, "3")) as folder:
        assert folder.is_relative_to(copy)
    registration.register_all(*run())
    removal.remove([{"name": NAME, "version": 2, "model": "head/ode", "dvc.md5": "0" * 32}])
    with versions.files(store(), store().get_model_version(NAME, "1")) as folder:
        (folder / "card.md").write_text("the best model ever")
    assert len(list(copy.glob("mlartifacts/*/models/*/artifacts/MLmodel"))) == 2
    upkeep.sync(*run())
    assert bytes_of(project) == original


def test_a_moved_checkout_works_as_if_born_there(project, tmp_path, monkeypatch):
    before, moved = state(), tmp_path / "moved"
    project.rename(moved)
    other_place(moved, monkeypatch)
    assert state() == before and upkeep.verify(*run()) == [] and upkeep.sync(*run()) == []
    assert len(lookup.find()) == 3 and not project.exists()


def test_gc_deletes_nothing_outside_of_its_own_store(project, tmp_path):
    """A place that somebody wrote into the database by hand."""
    model, outside = versions.logged(store(), store().get_model_version(NAME, "2")), tmp_path / "outside"
    shutil.copytree(model.artifact_location.removeprefix("file://"), outside)
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        database.execute("UPDATE logged_models SET artifact_location = ? WHERE model_id = ?", (outside.as_uri(), model.model_id))
    before = bytes_of(outside)
    removal.remove([{"name": NAME, "version": 2, "model": "head/ode", "dvc.md5": "0" * 32}])
    assert bytes_of(outside) == before


def forget() -> None:
    shutil.rmtree("mlartifacts")
    Path("mlflow.db").unlink()


@pytest.fixture
def nothing_unpickles(monkeypatch):
    """Whatever reads or writes a pickle fails."""

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a pickle")

    import cloudpickle

    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, refused)
        if hasattr(cloudpickle, name):
            monkeypatch.setattr(cloudpickle, name, refused)
    for name in ("load", "save"):
        monkeypatch.setattr(torch, name, refused)


def test_a_deleted_database_comes_back_whole(project, nothing_unpickles):
    """Every version, the one of an earlier run too, with its metrics, tags, card, files and aliases; no pickle on any of these ways."""
    before = state()
    assert sorted(before["versions"]) == [1, 2, 3] and before["aliases"] == {"natural": "1", "ode": "3", "champion": "3"}
    assert upkeep.verify(*run()) == []
    forget()
    assert f"head/ode: missing from registered model {NAME}" in upkeep.verify(*run())
    assert upkeep.sync(*run()) == []
    assert state() == before and upkeep.verify(*run()) == []
    assert lookup.load(f"{NAME}/2") and "weights.safetensors" in lookup.pull(f"{NAME}@champion", Path("taken"))


@pytest.mark.slow
def test_committed_runs_come_back_where_nothing_else_is_left(project):
    before = state()["versions"]
    forget()
    shutil.rmtree(".basin")
    assert upkeep.sync(*run()) == []
    after = state()["versions"]
    assert {v: one["metrics"] for v, one in after.items()} == {v: one["metrics"] for v, one in before.items()}
    assert {v: one["tags"]["dvc.md5"] for v, one in after.items()} == {v: one["tags"]["dvc.md5"] for v, one in before.items()}


@pytest.mark.slow
def test_what_dvcs_cache_lost_is_one_line_and_no_failure(project, caplog):
    lost = store().get_model_version(NAME, "2").tags["dvc.md5"]
    (project / ".dvc/cache/files/md5" / lost[:2] / lost[2:]).unlink()
    forget()
    commit = do("git", "rev-parse", "HEAD")[:12]
    assert upkeep.sync(*run()) == []
    (told,) = [record.message for record in caplog.records if record.name == "basin.registry.upkeep"]
    assert told == (
        f"registry: of 1 earlier run(s) the outputs are not in DVC's cache (commit {commit}). Fetch them, then sync again: dvc fetch -A."
    )
    caplog.clear()
    assert upkeep.verify(*run()) == [], "what cannot be fetched is no failure"
    assert [record.message for record in caplog.records if record.name == "basin.registry.upkeep"] == [
        f"registry: 1 version(s) of earlier runs are gone, and so are their outputs in DVC's cache (dvc.md5 {lost}). "
        "Fetch them, then sync: dvc fetch -A; basin registry sync."
    ]


def test_runs_come_in_their_order_whatever_the_clock_was(tmp_path, monkeypatch):
    """The first of two was committed on a machine whose clock was a year ahead, and a tag names it."""
    monkeypatch.chdir(tmp_path)
    do("git", "init", "-q")
    for number, year in enumerate((2031, 2030)):
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"{year}-01-01T00:00:00Z")
        for name in ("params.yaml", "dvc.lock"):
            Path(name).write_text(f"run: {number}\n")
        commit(f"run {number}")
        do("git", "tag", f"run{number}")
    assert [one.params for one in snapshot.committed()] == ["run: 0\n", "run: 1\n"]


def test_what_was_changed_by_hand_is_found_and_mended(project):
    before = state()
    one = store().get_model_version(NAME, "2")
    store().set_model_version_tag(NAME, "2", "worst_case", "0.99")
    with versions.files(store(), one) as folder:
        (folder / "card.md").write_text("the best model ever")
        (folder / "artifacts/ode/recipe.json").write_text("{}")
    store().log_metric(one.run_id, "clean", 2.0, model_id=versions.logged(store(), one).model_id)
    store().update_model_version(NAME, "2", "the best model ever")
    store().create_model_version(NAME, "s3://elsewhere/model")
    store().set_registered_model_alias(NAME, "ode", "1")
    problems = upkeep.verify(*run())
    for what in ("tag worst_case", "file card.md", "file artifacts/ode/recipe.json", "metric clean", "description"):
        assert f"{NAME}/2: changed by hand: {what}" in problems
    assert f"{NAME}@ode: points to version 1 instead of 3" in problems
    assert f"{NAME}/4: foreign, not registered by Basin" in problems
    with pytest.raises(Mistake, match=r"digits-linf-0.15/2: changed since it was registered \(got artifacts/ode/recipe.json\)"):
        lookup.pull(f"{NAME}/2", Path("taken"))
    store().set_model_version_tag(NAME, "2", "clean", "high")
    assert f"{NAME}/2: changed by hand: tag clean" in upkeep.verify(*run())
    with pytest.raises(Mistake, match=r"digits-linf-0.15/2: a tag was changed by hand \(got ValueError: .*'high'\)\. To mend it: basin"):
        lookup.pull(f"{NAME}/2", Path("taken"))
    assert upkeep.sync(*run()) == []
    store().delete_model_version(NAME, "4")
    assert state() == before


MLFLOWS = ["MLmodel", "conda.yaml", "input_example.json", "pyfunc.py", "python_env.yaml", "requirements.txt", "serving_input_example.json"]
OURS = ["artifacts/ode/weights.safetensors", "artifacts/ode/twin/weights.safetensors", "code/basin/registry/serving.py", "run/dvc.lock"]


def test_a_flipped_bit_of_any_file_of_a_version_is_found_refused_and_mended(project):
    """Those that MLflow wrote, of which two say what code runs, as well."""
    before = state()
    with versions.files(store(), store().get_model_version(NAME, "2")) as folder:
        assert {*MLFLOWS, *OURS} <= before["versions"][2]["files"]["manifest"]["files"].keys() | {"MLmodel"}
        for name in (*MLFLOWS, *OURS):
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
            assert upkeep.verify(*run()) == [f"{NAME}/2: changed by hand: file {name}"]
            if not name.startswith("code/"):
                with pytest.raises(Mistake) as mistake:
                    lookup.load(f"{NAME}/2")
                assert str(mistake.value) == f"{NAME}/2: changed since it was registered (got {name}). Try basin registry sync."
            (folder / name).write_bytes(content)
        assert lookup.load(f"{NAME}/2")
        for name in (*MLFLOWS, *OURS):
            (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b"#")
    assert upkeep.sync(*run()) == [] and upkeep.verify(*run()) == [] and state() == before


@pytest.mark.slow
def test_gc_takes_what_nobody_needs_and_never_a_champion(project):
    assert removal.gc(run()[0]) == [], "version 2 is in a commit's dvc.lock"
    retrain(run()[0], "head/ode", seed=2, held=12)
    dvc("commit", "--force")
    registration.register_all(*run())
    retrain(run()[0], "head/ode", seed=3, held=12)
    dvc("commit", "--force")
    registration.register_all(*run())
    found = removal.gc(run()[0])
    assert [one["version"] for one in found] == [4], "3 is champion, 5 is of this run, 1 and 2 are of a commit"
    removal.remove(found)
    assert sorted(state()["versions"]) == [1, 2, 3, 5] and upkeep.verify(*run()) == []
    assert upkeep.sync(*run()) == [] and sorted(state()["versions"]) == [1, 2, 3, 5], "what was removed stays away"
    with pytest.raises(Mistake, match="digits-linf-0.15/3: has an alias"):
        removal.remove([found[0] | {"version": 3}])


def test_checkout_restores_a_run_or_says_what_is_missing(project):
    target = f"{NAME}/2"
    with pytest.raises(Mistake, match=r"workspace: has changes that are in no commit \(got dvc.lock\). Commit them"):
        checkout.checkout(target)
    commit("second run")
    wanted = store().get_model_version(NAME, "2").tags["dvc.md5"]
    now = run()[1]["head/ode"]
    _, outs = checkout.checkout(target)
    assert run()[1]["head/ode"] == wanted != now and "models/head/ode" in outs
    assert do("git", "rev-parse", "HEAD").strip() == store().get_model_version(NAME, "2").tags["commit"]
    registration.register_all(*run())
    assert aliases()["ode"] == "2", "the files are those of version 2"
    do("git", "checkout", "-q", "--", ".")
    (project / ".dvc/cache/files/md5" / wanted[:2] / wanted[2:]).unlink()
    store().set_model_version_tag(NAME, "2", "commit", "0" * 40)
    with pytest.raises(Mistake) as caught:
        checkout.checkout(target)
    assert [message.partition(" (got")[0] for message in caught.value.messages] == [
        "commit: not in this repository", "models/head/ode: not in DVC's cache",
    ]  # fmt: skip


def test_the_commands_answer_in_words_and_in_json(project):
    from typer.testing import CliRunner

    from basin.cli.app import app

    def basin(*words: str, code: int = 0, json_too: bool = True) -> tuple[str, Any]:
        done = CliRunner().invoke(app, [*words, *(["--json", "answer.json"] if json_too else [])])
        assert done.exit_code == code, (words, done.output, done.exception)
        return done.output, json.loads(Path("answer.json").read_text()) if json_too else None

    said, answer = basin("models", "--eps", "0.15", "--min-robust", "0.5")
    assert [(one["version"], one["aliases"], one["standing"]) for one in answer] == [
        (3, ["champion", "ode"], "champion"), (2, [], "challenger"),
    ]  # fmt: skip
    assert f"{NAME}/3" in said and "87.5% [73.9%, 94.5%]" in said
    assert "No model of the registry fits." in basin("models", "--data", "cifar10")[0]
    for asked, code in (("--min-robust", "50"), 2), (("--min-clean", "-1"), 2), (("--norm", "L2"), 1):  # a Mistake: 2 of `main`
        basin("models", *asked, code=code, json_too=False)
    assert "head/ode: 87.5% robust" in basin("show", f"{NAME}@champion")[0]
    said, answer = basin("compare", f"{NAME}@champion", f"{NAME}/2")
    assert answer["difference"]["value"] == 0.375 and "A - B: +37.5 points" in said
    assert answer["attacked_by_less"] == {"a": [], "b": []}
    said, answer = basin("promote", "--dry-run")
    assert [one["standing"] for one in answer.values()] == ["champion", "challenger", "challenger"] and "Nothing was changed." in said
    assert sorted(basin("pull", f"{NAME}@champion", "--to", "taken")[1]["files"])[-1] == "weights.safetensors"
    assert basin("registry", "verify")[1] == [] and basin("gc", "--dry-run")[1] == []
    store().set_model_version_tag(NAME, "3", "worst_case", "0.99")
    assert f"{NAME}/3: changed by hand: tag worst_case" in basin("registry", "verify", code=1)[0]
    for words, message in (
        (("show", f"{NAME}/9"), f"TARGET: no such version in sqlite:///{project}/mlflow.db (got '{NAME}/9')"),
        (("show", f"{NAME}@chmpion"), "Did you mean 'champion'?"),
        (("show", "nonsense"), "TARGET: names no version (got 'nonsense'). Give NAME@ALIAS or NAME/VERSION"),
    ):
        with pytest.raises(Mistake) as caught:
            CliRunner().invoke(app, list(words), catch_exceptions=False)
        assert message in str(caught.value)


def made(md5: str) -> int:
    """A version with nothing in it, or the one that is there; this checkout needs it."""
    with client.current() as mlflow:
        there = versions.find(mlflow, NAME, md5, "head/ode") or _made(mlflow, md5)
        needs.claim(mlflow, NAME, int(there.version))
        return int(there.version)


def _made(mlflow: MlflowClient, md5: str) -> ModelVersion:
    model = mlflow.create_logged_model(client.experiment_id(mlflow, "digits"))
    files.write(Path(model.artifact_location.removeprefix("file://"), "MLmodel"), "{}")
    return mlflow.create_model_version(NAME, model.model_uri, tags={"dvc.md5": md5, "model": "head/ode"}, model_id=model.model_id)


def test_a_version_goes_with_the_last_checkout_that_needs_it(workspace, tmp_path, monkeypatch):  # noqa: F811
    """Three checkouts on one MLflow, the database of the first; the third is a copy of the second, its `.basin` too."""

    def enter(checkout: str) -> None:
        (tmp_path / checkout).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / checkout)
        Path("params.yaml").write_text(PARAMS)

    def gc() -> dict[int, list[str]]:
        found = removal.gc(params.load())
        removal.remove(found)
        return {one["version"]: one["needed_by"] for one in found}

    enter("a")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/a/mlflow.db")
    shutil.copy(workspace / "mlflow.db", "mlflow.db")
    client.client().create_registered_model(NAME)
    assert [made("equal"), made("of a alone"), made("of a and the copy")] == [1, 2, 3]
    enter("b")
    assert [made("equal"), made("of b alone")] == [1, 4]
    shutil.copytree(tmp_path / "b", tmp_path / "copy")
    b = f"{platform.node()}:{tmp_path}/b"
    enter("copy")
    assert gc() == {}, "it has needed nothing yet"
    assert made("of a and the copy") == 3
    enter("a")
    assert gc() == {1: [b], 2: [], 3: [f"{platform.node()}:{tmp_path}/copy"]}
    assert [int(version.version) for version in versions.search(store(), NAME, {})] == [4, 3, 1], "all of them with their files"
    assert removal.removed() == {"equal", "of a alone", "of a and the copy"} and gc() == {}
    (tmp_path / "b").rename(tmp_path / "moved")
    enter("moved")
    assert gc() == {1: [], 4: []}
    enter("copy")
    assert gc() == {3: []} and versions.search(store(), NAME, {}) == []
