"""What the flows are made of, without a server: the order, slots, progress, changes, forms."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from safetensors.numpy import save_file

from basin.errors import Absent, Mistake
from basin.repro import graph, slots
from basin.repro.graph import Stage, StageFailed
from basin.repro.guard import Stopped


@pytest.fixture
def flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The flows alone: nothing here talks to a server."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    from basin.flow.judgement import evaluate
    from basin.flow.nightly import nightly
    from basin.flow.reproduction import repro
    from basin.flow.sweep import sweep

    return SimpleNamespace(evaluate=evaluate, nightly=nightly, repro=repro, sweep=sweep)


FORK = [Stage("a"), Stage("short", ("a",)), Stage("long", ("a",)), Stage("join", ("short", "long"))]


def test_the_head_of_the_longest_way_is_first(flow):
    from basin.flow.order import by_rank

    seconds = {"a": 1.0, "short": 2.0, "long": 9.0, "join": 1.0}
    stages = [*FORK, Stage("alone")]
    assert [stage.name for stage in by_rank(stages, (), seconds | {"alone": 10.5})] == ["a", "alone", "long", "short", "join"]
    assert [stage.name for stage in by_rank(stages, ["long", "a"], seconds | {"alone": 2.5})] == ["a", "short", "alone", "long", "join"]


def test_a_stage_that_never_ran_is_expected_to_take_what_its_family_takes(flow):
    from basin.flow.order import by_rank

    stages = [Stage("attack@x"), Stage("head@new"), Stage("head@old")]
    named = [stage.name for stage in by_rank(stages, (), {"head@old": 30.0, "head@gone": 50.0, "attack@x": 35.0})]
    assert named == ["head@new", "attack@x", "head@old"]


def test_seconds_are_remembered_and_a_broken_memory_is_none(flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from basin.flow import order

    monkeypatch.chdir(tmp_path)
    order.remember({"a": 1.23})
    order.remember({"b": 2.0})
    assert order.remembered() == {"a": 1.2, "b": 2.0}
    order.SECONDS.write_text("{half")
    assert order.remembered() == {}


def test_halves_share_a_device_and_a_whole_one_is_nobody_elses(tmp_path: Path):
    first, second = (slots.take(0.5, ["0", "1"], tmp_path) for _ in range(2))
    assert first and second and first.ids == second.ids == ["0"], "shares gather on one device"
    whole = slots.take(1, ["0", "1"], tmp_path)
    assert whole and whole.ids == ["1"]
    assert slots.take(0.25, ["0", "1"], tmp_path) is None
    first.release()
    third = slots.take(0.34, ["0", "1"], tmp_path)
    assert third and third.ids == ["0"] and third.environment == {"CUDA_VISIBLE_DEVICES": "0"}
    assert slots.take(1, ["0"], tmp_path) is None, "a part is still taken"
    second.release()
    third.release()
    both = slots.take(2, ["0"], tmp_path)
    assert both and both.ids == ["0"], "all there are where more are wanted"


def test_places_are_counted_and_a_refused_slot_holds_nothing(tmp_path: Path):
    two = slots.take(0, [], tmp_path, cpus=2, workers=3)
    assert two is not None
    assert slots.take(0, [], tmp_path, cpus=2, workers=3) is None
    one = slots.take(0, [], tmp_path, cpus=1, workers=3)
    assert one is not None and one.environment == {}
    assert slots.take(1, ["0"], tmp_path, cpus=1, workers=3) is None
    assert slots.take(1, ["0"], tmp_path) is not None, "the refused one let go of the device"


@pytest.mark.parametrize("gpu", ["one", -1, True])
def test_a_share_that_is_no_number_is_a_mistake(gpu: object):
    with pytest.raises(Mistake, match=r"^dvc.yaml: s: meta.gpu: should be a number, 0 or above \(got .*\)\. Say how many it wants\.$"):
        _ = Stage("s", meta={"gpu": gpu}).gpus


def checkpoint(path: Path, **texts: object) -> None:
    path.parent.mkdir(parents=True)
    save_file({"model/w": np.zeros(1, dtype=np.float32)}, path, {name: json.dumps(text) for name, text in texts.items()})


PHASES = "head: {sodef: {schedule: {features: {epochs: 2}, flow: {epochs: 3}, joint: {epochs: 5}}}}"


@pytest.mark.parametrize("folder", [None, "elsewhere"])
def test_progress_is_read_from_a_stages_checkpoint(flow, folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from basin.flow.progress import read

    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(PHASES)
    if folder:
        monkeypatch.setenv("BASIN_CHECKPOINTS", str(tmp_path / folder))
    kept = tmp_path / (folder or ".basin/checkpoints")
    assert read("head@sodef") is None
    rows = [{"phase": "features", "accuracy": 0.5}, {"phase": "flow", "accuracy": 0.875}]
    checkpoint(kept / "head/sodef/1.safetensors", progress={"history": rows})
    assert read("head@sodef") == (20.0, "2 of 10 epochs, accuracy 87.5%")
    attacked = {"attack": ["fgsm", "", "", "clean"], "finished": 1, "planned": 3}
    checkpoint(kept / "attack/backbone/natural/quick/1.safetensors", about=attacked)
    percent, words = read("attack@backbone/natural-quick") or (0, "")
    assert (round(percent, 1), words) == (33.3, "4 images attacked in 1 of 3 steps, 2 hold")
    (kept / "head/sodef/1.safetensors").write_bytes(b"half")
    assert read("head@sodef") is None


def test_changes_are_made_as_dvc_makes_them_or_not_at_all(project):
    place = project("stages: {}\n")
    before = (place / "params.yaml").read_text()
    graph.change(["threat.eps=0.1", "attack.images=20"])
    assert "eps: 0.1" in (place / "params.yaml").read_text() and "images: 20" in (place / "params.yaml").read_text()
    (place / "params.yaml").write_text(before)
    for wrong, said in {
        "thraet.eps=0.1": r"^changes: cannot be made in params.yaml \(got thraet.eps=0.1: .*\)\. Write KEY=VALUE, of a key that is there",
        "threat.eps=-1": r"params.yaml: threat.eps: ",
    }.items():
        with pytest.raises(Mistake, match=said):
            graph.change([wrong])
        assert (place / "params.yaml").read_text() == before


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        (
            "repro",
            {"targets": ["head"], "changes": ["threat.eps=0.1"], "workers": 3},
            [{"workers": 0}, {"changes": ["=1"]}, {"targets": "x"}],
        ),
        ("sweep", {"range": {"key": "threat.eps", "low": 0.1, "high": 0.2, "count": 3}}, [{"range": {"key": "a"}}, {"table": [{"a": []}]}]),
        ("evaluate", {"target": "m", "eps": "8/255", "norm": "l2"}, [{}, {"target": "m", "eps": "much"}, {"target": "m", "suite": "hard"}]),
        ("nightly", {"workers": 1}, [{"workers": 1.5}]),
    ],
)
def test_every_field_of_a_form_is_described_and_wrong_values_are_refused(flow, name: str, right: dict, wrong: list[dict]):
    schema = getattr(flow, name).parameters.model_dump()
    assert all(field.get("description") for field in schema["properties"].values())
    form = Draft202012Validator(schema)
    assert form.is_valid(right)
    assert not any(form.is_valid(values) for values in wrong)


def test_a_range_has_both_ends_and_equal_steps_or_ratios(flow):
    from basin.flow.sweep import Range

    assert [point["k"] for point in Range(key="k", low=0, high=1, count=5).points()] == [0, 0.25, 0.5, 0.75, 1]
    assert [point["k"] for point in Range(key="k", low=0.01, high=100, count=5, scale="log").points()] == [0.01, 0.1, 1, 10, 100]
    with pytest.raises(Mistake, match=r"^range: a log scale needs both ends above 0 \(got 0 to 1\)\."):
        Range(key="k", low=0, high=1, count=2, scale="log").points()


def test_what_may_pass_is_tried_again_and_bad_input_is_not(flow):
    from prefect.states import Failed

    from basin.flow.children import RETRIES

    errors = [Absent("registry: away"), Mistake("eps: wrong"), StageFailed("s", 75, ""), StageFailed("s", 2, ""), StageFailed("s", 137, "")]
    again = [RETRIES["retry_condition_fn"](None, None, Failed(data=error)) for error in [*errors, Stopped("s: stopped")]]
    assert again == [True, False, True, False, True, False]
