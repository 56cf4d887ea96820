"""What somebody may have planted: pickles in every file that is read, names that lead out of a folder, HTML in names."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from small import classifier

import basin
from basin import checkpoint
from basin.data.about import load_about
from basin.data.splits import load_split
from basin.errors import Mistake
from basin.evaluation import outcomes, outside
from basin.flow import pages
from basin.models import artifact
from basin.models.recipe import read_recipe
from basin.registry import lookup, snapshot
from basin.report import outcomes as reading
from basin.report import wording
from basin.tracking import lines

SCRIPT = "<script>alert(1)</script>"


class Planted:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def plant(tmp_path):
    """Puts a pickle at a place, in each way that torch, numpy and Python write one; none of them may have been loaded in the end."""
    mark = tmp_path / "loaded"
    pickle.loads(pickle.dumps(Planted(mark)))
    assert mark.exists(), "the bait works"
    mark.unlink()

    def ways(path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(Planted(mark)))
        yield
        torch.save(Planted(mark), path)
        yield
        np.savez(path.with_suffix(".npz"), images=np.array([Planted(mark)], object), labels=np.array([Planted(mark)], object))
        path.write_bytes(path.with_suffix(".npz").read_bytes())
        yield

    yield ways
    assert not mark.exists()


READ = {
    "model/weights.safetensors": lambda place: basin.load(place / "model"),
    "model/recipe.json": lambda place: read_recipe(place / "model"),
    "model/twin/weights.safetensors": lambda place: artifact.load_twin(place / "model"),
    "data/test.safetensors": lambda place: load_split(place / "data", "test"),
    "data/about.json": lambda place: load_about(place / "data"),
    "images.npz": lambda place: outside.images(str(place / "images.npz"), None, 0),
    "outcomes/head/x/quick/summary.json": lambda place: reading.read(place / "outcomes", "head/x", "quick"),
}


@pytest.mark.parametrize("name", READ)
def test_a_planted_pickle_is_refused(name, plant, tmp_path):
    artifact.save(tmp_path / "twin", classifier(seed=1).eval())
    artifact.save(tmp_path / "model", classifier().eval(), tmp_path / "twin")
    for _ in plant(tmp_path / name):
        with pytest.raises(Mistake, match=r": .+ \(got .+\)\. "):
            READ[name](tmp_path)


def test_a_planted_checkpoint_is_not_gone_on_from(plant, tmp_path):
    none = torch.zeros(0, dtype=torch.int64)
    for _ in plant(tmp_path / "checkpoint"):
        assert checkpoint.read(tmp_path / "checkpoint") == ({}, {})
        with pytest.raises(checkpoint.UNREADABLE):
            outcomes.unpack(tmp_path / "checkpoint", none, torch.zeros(0, 1, 1, 1), none)


def test_a_pickled_version_of_the_registry_is_refused(plant, tmp_path, monkeypatch):
    import mlflow

    from basin import environment

    monkeypatch.chdir(tmp_path)
    for name in (*environment.SAFE, *environment.SILENT, "MLFLOW_TRACKING_URI", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))

    class Model(mlflow.pyfunc.PythonModel):
        def __init__(self, planted):
            self.planted = planted

        def predict(self, context, model_input, params=None):
            return model_input

    from basin.tracking.client import client

    client()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.pyfunc.log_model(name="x", python_model=Model(Planted(tmp_path / "loaded")), registered_model_name="digits", pip_requirements=[])
    environment.apply()
    with pytest.raises(Mistake, match="pickle"):
        lookup.load_with_twin("digits/1")
    list(plant(tmp_path / "nothing"))


def test_a_listing_that_leads_out_of_its_folder_is_not_followed(tmp_path):
    """DVC's cache may come from a remote of another's."""

    def cached(content: bytes, end: str = "") -> str:
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        (place := tmp_path / "cache" / md5[:2] / f"{md5[2:]}{end}").parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        return md5 + end

    for name, fetched in (("in/side", True), ("../out", False), (str(tmp_path / "out"), False)):
        listing = cached(json.dumps([{"md5": cached(b"content"), "relpath": name}]).encode(), ".dir")
        assert snapshot.fetch(listing, tmp_path / "folder", tmp_path / "cache") is fetched
        assert not (tmp_path / "out").exists()
    (tmp_path / "cache" / listing[:2] / listing[2:]).write_bytes(b"[]")
    assert not snapshot.fetch(listing, tmp_path / "folder", tmp_path / "cache")


@pytest.mark.parametrize("resume", ["../../out", "/out"])
def test_a_journal_writes_nothing_outside_of_its_folder(resume, tmp_path, caplog):
    start = {"experiment": "x", "run_name": "x", "params": {}, "resume": resume}
    (tmp_path / "x.jsonl").write_text(json.dumps({"time": 1, "start": start}) + "\n", encoding="utf-8")
    with (tmp_path / "x.jsonl").open(encoding="utf-8") as file:
        assert list(lines.complete_lines(file)) == []
    assert "one damaged line" in caplog.text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (SCRIPT, r"\<script\>alert(1)\</script\>"),
        ("[x](javascript:alert(1))", r"\[x\](javascript:alert(1))"),
        ("a\n# b", r"a \# b"),
        ("&lt;script&gt;", r"\&lt;script\&gt;"),
        ("T-shirt/top", "T-shirt/top"),
    ],
)
def test_a_class_name_is_words_on_the_card_and_on_prefects_pages(name, words):
    assert wording.plain(name) == words
    assert pages.markdown(["stage", "why"], [["prepare", name]]) == f"| stage | why |\n| --- | --- |\n| prepare | {words} |"
