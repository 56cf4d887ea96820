"""One run over all stages of a `basin repro`: the headline, the report, and what ran below it."""

import json
import os

import pytest
from test_tracking import database, empty, folder, runs, start  # noqa: F401

from basin.tracking import journal, parent, shared

METRICS = {
    "head/a": {"clean": 0.9, "worst_case": 0.2, "interval_low": 0.1, "interval_high": 0.3, "n": 10},
    "head/b": {"clean": 0.8, "worst_case": 0.6, "interval_low": 0.5, "interval_high": 0.7, "n": 10},
}


def stage(name: str, then: str = "pass") -> int:
    told = {key: os.environ[key] for key in (journal.PARENT, shared.PIPE) if key in os.environ}
    return start(os.getcwd(), name, then, **told).wait()


def written(folder) -> None:  # noqa: F811
    (folder / "report").mkdir()
    for name in parent.FILES:
        (folder / "report" / name).write_text(json.dumps(METRICS))


@pytest.mark.slow
def test_stages_stand_under_a_run_with_the_headline_and_the_report(folder):  # noqa: F811
    from basin.tracking.client import client

    with shared.one_mirror(), parent.parent("digits-linf-0.1", "digits", {"threat": {"eps": 0.1}}) as ended:
        assert stage("backbone/natural") == stage("attack/head/b/quick") == 0
        written(folder)
        ended(0)
    by_stage = {run.data.tags["stage"]: run for run in runs()}
    over = by_stage.pop("repro")
    assert {run.data.tags["mlflow.parentRunId"] for run in by_stage.values()} == {over.info.run_id}
    assert over.info.status == "FINISHED" and over.info.run_name.endswith(" digits-linf-0.1")
    assert over.data.metrics == {
        "worst_case/head/a": 0.2, "worst_case/head/b": 0.6, "worst_case": 0.6, "interval_low": 0.5, "interval_high": 0.7, "clean": 0.8,
    }  # fmt: skip
    assert over.data.params["threat.eps"] == "0.1" and over.data.tags["ran.backbone/natural"] == "yes"
    assert {file.path for file in client().list_artifacts(over.info.run_id)} == set(parent.FILES)
    assert sorted(run.info.run_name for run in by_stage.values()) == ["backbone/natural", "quick: b (head)"]
    assert journal.PARENT not in os.environ and not [path for path in folder.glob(".basin/runs/**/*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "whole", "stages"), [(0, False, ["prepare"]), (255, True, ["prepare"]), (0, False, ["prepare", "report"])]
)
def test_figures_and_pages_of_an_earlier_run_are_not_this_ones(folder, code, whole, stages):  # noqa: F811
    from basin.tracking.client import client

    written(folder)
    with shared.one_mirror(), parent.parent("digits-linf-0.1", "digits", {}, whole=whole) as ended:
        assert not any(map(stage, stages))
        ended(code)
    (over,) = [run for run in runs() if run.data.tags["stage"] == "repro"]
    reported = "report" in stages
    assert bool(over.data.metrics) == reported
    own = {name for name, made in parent.FILES.items() if made == "report"} if reported else set()
    assert {file.path for file in client().list_artifacts(over.info.run_id)} == own


def test_where_nothing_ran_there_is_no_run(folder):  # noqa: F811
    with parent.parent("digits-linf-0.1", "digits", {}) as ended:
        ended(0)
    assert runs() == [] and not [path for path in folder.glob(".basin/runs/**/*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize(("code", "status"), [(255, "FAILED"), (130, "KILLED")])
def test_how_the_stages_ended_is_told(folder, code, status):  # noqa: F811
    from basin.tracking import mirror

    with shared.one_mirror(), parent.parent("digits-linf-0.1", "digits", {}) as ended:
        stage("backbone/natural", "raise ValueError")
        ended(code)
    assert mirror.deliver_all()  # of one that was stopped the next run sends the rest
    assert {run.data.tags["stage"]: run.info.status for run in runs()} == {"repro": status, "backbone/natural": "FAILED"}


def test_nothing_depends_on_mlflow(empty, monkeypatch):  # noqa: F811
    (empty / ".basin").write_text("in the way")
    with parent.parent("digits-linf-0.1", "digits", {}) as ended:
        ended(0)
    monkeypatch.setenv("BASIN_TRACKING", "off")
    with parent.parent("digits-linf-0.1", "digits", {}) as ended:
        assert journal.PARENT not in os.environ
