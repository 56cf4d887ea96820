"""A stage tells MLflow everything and depends on it for nothing."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from basin.tracking import journal, mirror

ROOT = Path(__file__).parents[2]
STAGE = """
import logging, os, sys, time
logging.basicConfig()
from basin.tracking import journal
began = time.monotonic()
with journal.run({stage!r}, {{"epochs": 3}}, {{"seed": 0}}, experiment="digits") as run:
    assert "mlflow" not in sys.modules and time.monotonic() - began < 1
    for epoch in range(3):
        run.metrics({{"loss": 1 / (epoch + 1)}}, step=epoch)
    {then}
print("stage done")
"""


def start(folder: Path, stage: str = "head/sodef", then: str = "pass", **environment: str) -> subprocess.Popen:
    """A stage in a process of its own, run in `folder`."""
    settings = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_") and key != "BASIN_TRACKING"}
    settings |= {"PYTHONPATH": str(ROOT), **environment}
    code = STAGE.format(stage=stage, then=then)
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty repository root, as the working directory, with MLflow at its default."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BASIN_TRACKING", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """A new database of MLflow's, made once: 2 s."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    SqlAlchemyStore(f"sqlite:///{path}", str(path.parent / "artifacts")).engine.dispose()
    return path


@pytest.fixture
def folder(empty, database):
    """The same with MLflow's database already there."""
    shutil.copyfile(database, empty / "mlflow.db")
    return empty


def runs(experiment: str = "digits") -> list:
    from basin.tracking.client import client

    store = client()
    found = store.get_experiment_by_name(experiment)
    return store.search_runs([found.experiment_id]) if found else []


def told(run) -> dict[str, float]:
    """A run's metrics, without those of the machine."""
    numbers = run.data.metrics
    assert numbers.pop("system/cpu_seconds") > 0 and numbers.pop("system/peak_memory_megabytes") > 10
    return numbers


def until(true, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (done := true()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return done


def test_a_run_holds_what_the_stage_said(empty):
    from basin.tracking.client import client

    (empty / "history.csv").write_text("phase,epoch,loss\n")
    params = {"head": {"kind": "sodef", "lambda": 0.5}, "widths": [1, 2], "from": None, "note": "x" * 7000}
    with journal.run("head/sodef", params, {"seed": 3, "device": "cpu", "data_digest": "d1"}, experiment="digits") as run:
        for epoch in range(3):
            run.metrics({"loss": 1.0 / (epoch + 1)}, step=epoch)
        run.metrics({"after.pgd, long": 0.5})
        run.artifact("history.csv")
        run.tags({"flag": "masked"})
    (found,) = runs()
    assert found.info.status == "FINISHED" and found.info.run_name == "head/sodef"
    assert found.data.params | {"note": ""} == {"head.kind": "sodef", "head.lambda": "0.5", "widths": "[1, 2]", "from": "null", "note": ""}
    assert len(found.data.params["note"]) == 6000
    assert {"stage": "head/sodef", "seed": "3", "device": "cpu", "data_digest": "d1", "flag": "masked"}.items() <= found.data.tags.items()
    assert {"commit", "dirty"} <= found.data.tags.keys()
    assert [(used.dataset.name, used.dataset.digest) for used in found.inputs.dataset_inputs] == [("digits", "d1")]
    assert found.data.metrics["after.pgd_ long"] == 0.5  # MLflow takes no comma
    assert [(m.step, m.value) for m in client().get_metric_history(found.info.run_id, "loss")] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert {file.path for file in client().list_artifacts(found.info.run_id)} == {"history.csv", "params.json"}
    assert found.info.artifact_uri.startswith((empty / "mlartifacts").as_uri())
    assert [path for path in (empty / ".basin/runs").rglob("*") if path.is_file()] == []


def test_an_error_of_the_stage_passes_and_is_told(folder):
    with pytest.raises(ValueError, match="weights are not finite"), journal.run("backbone/natural", {}, {}, experiment="digits"):
        raise ValueError("weights are not finite")
    (found,) = runs()
    assert (found.info.status, found.data.tags["error"]) == ("FAILED", "ValueError: weights are not finite")
    with journal.run("backbone/natural", {}, {}, experiment="digits"):
        pass
    (found,) = runs()
    assert found.info.status == "FINISHED" and "error" not in found.data.tags, "the retry went well"


@pytest.mark.parametrize("blow", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_stage_is_seen_killed_and_its_retry_continues_the_run(folder, blow):
    stage = start(folder, then="print('trained', flush=True); time.sleep(60)")
    assert stage.stdout.readline() == "trained\n"
    assert until(lambda: (folder / "mlflow.db").exists() and len(runs()) == 1 and "loss" in runs()[0].data.metrics), "metrics come live"
    assert runs()[0].info.status == "RUNNING"
    stage.send_signal(blow)
    stage.communicate()
    assert until(lambda: runs()[0].info.status == "KILLED")
    assert start(folder).wait() == 0
    (found,) = runs()
    assert found.info.status == "FINISHED"


def test_what_is_left_of_a_killed_attempt_leaves_the_end_of_the_next_one(folder):
    stage = start(folder, then="run.tags({'note': 'first'}); print('trained', flush=True); time.sleep(60)")
    assert stage.stdout.readline() == "trained\n"
    assert until(lambda: (folder / "mlflow.db").exists() and len(runs()) == 1 and "note" in runs()[0].data.tags)
    for one in (*psutil.Process(stage.pid).children(), stage):  # its mirror too
        one.kill()
    stage.communicate()
    assert start(folder, then="run.tags({'note': 'second'})").wait() == 0
    assert list(Path(".basin/runs").rglob("*.jsonl"))
    assert mirror.deliver_all() and not list(Path(".basin/runs").rglob("*.jsonl"))
    (found,) = runs()
    assert (found.info.status, found.data.tags["note"]) == ("FINISHED", "second")


def test_other_params_are_another_run(folder):
    for epochs in (1, 2):
        with pytest.raises(KeyboardInterrupt), journal.run("head/sodef", {"epochs": epochs}, {}, experiment="digits"):
            raise KeyboardInterrupt
    assert until(lambda: {(run.data.params.get("epochs"), run.info.status) for run in runs()} == {("1", "KILLED"), ("2", "KILLED")})


def test_absent_server_costs_one_warning_and_nothing_is_lost(folder):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        server = f"http://someone:secret@127.0.0.1:{closed.getsockname()[1]}"
    began = time.monotonic()
    out, err = (stage := start(folder, MLFLOW_TRACKING_URI=server)).communicate()
    assert (stage.returncode, out) == (0, "stage done\n") and time.monotonic() - began < 25
    assert err.count("does not take this run") == 1 and err.count("WARNING") == 1
    assert "Deliver it when MLflow is back: python -m basin.tracking.mirror" in err and "secret" not in err

    deliver = [sys.executable, "-m", "basin.tracking.mirror"]
    assert subprocess.run(deliver, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0
    (found,) = runs()
    assert found.info.status == "FINISHED" and told(found) == {"loss": 1 / 3}
    assert list((folder / ".basin/runs").rglob("*.jsonl")) == []


def test_a_damaged_database_costs_one_warning(folder):
    (folder / "mlflow.db").write_bytes(b"this is no database" * 100)
    out, err = (stage := start(folder)).communicate()
    assert (stage.returncode, out) == (0, "stage done\n")
    assert err.count("file is not a database") == 1 and err.count("WARNING") == 1
    assert (folder / "mlflow.db").read_bytes().startswith(b"this is no database"), "left for its owner to look at"


def test_a_locked_database_costs_one_warning(folder):
    with sqlite3.connect(folder / "mlflow.db", isolation_level=None) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        out, err = (stage := start(folder)).communicate()
    assert (stage.returncode, out) == (0, "stage done\n")
    assert err.count("database is locked") == 1 and err.count("WARNING") == 1


@pytest.mark.slow
def test_first_use_by_many_processes_at_once(empty):
    stages = [start(empty, f"backbone/b{number}") for number in range(5)]
    errors = [stage.communicate()[1] for stage in stages]
    assert errors == [""] * 5
    assert sorted((run.info.run_name, run.info.status) for run in runs()) == [(f"backbone/b{n}", "FINISHED") for n in range(5)]


def test_an_unwritable_folder_leaves_the_stage_untracked(empty, caplog):
    (empty / ".basin").write_text("in the way")
    with journal.run("prepare", {}, {}, experiment="digits") as run:
        run.metrics({"n": 1})
    assert "The stage goes on untracked." in caplog.text


def test_tracking_can_be_switched_off(empty, monkeypatch):
    monkeypatch.setenv("BASIN_TRACKING", "off")
    with journal.run("prepare", {}, {}, experiment="digits") as run:
        run.metrics({"n": 1})
    assert list(empty.iterdir()) == []


def test_uri_is_where_mlflow_itself_would_look(folder, monkeypatch):
    assert journal.uri() == f"sqlite:///{folder}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    assert journal.uri() == f"sqlite:///{folder}/elsewhere.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert journal.uri() == "http://tracking:5000"


def counted() -> dict[str, int]:
    """Rows of MLflow's database."""
    tables = {"runs": "run_uuid", "metrics": "*", "params": "*", "inputs": "*"}
    with sqlite3.connect("mlflow.db") as found:
        return {table: found.execute(f"SELECT count({what}) FROM {table}").fetchone()[0] for table, what in tables.items()}


def test_a_journal_delivered_again_changes_nothing(folder, monkeypatch):
    """A delivery that is killed at its very end leaves the journal, and of the file beside it what it left."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    (folder / "history.csv").write_text("loss\n")
    with journal.run("head/sodef", {"epochs": 3}, {"data_digest": "d1"}, experiment="digits") as run:
        run.metrics({"loss": 0.5, "error": float("nan")}, step=1)
        run.artifact("history.csv")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (file,) = (folder / ".basin/runs").rglob("*.jsonl")
    content, before = file.read_bytes(), None
    from basin.tracking.delivery import Delivery
    from basin.tracking.mirror import deliver_all

    for _ in range(2):  # the second time nothing but the run's own tag says that it is there
        file.write_bytes(content)
        assert deliver_all() and list((folder / ".basin/runs").rglob("*.*")) == []
        before = before or counted()
        assert counted() == before == {"runs": 1, "metrics": 4, "params": 1, "inputs": 1}
    file.write_bytes(content)
    delivery = Delivery(file)
    lines = [json.loads(line) for line in content.splitlines()]
    delivery.send(lines, ended=False)
    (folder / "mlartifacts" / "digits" / delivery.run_id / "artifacts" / "history.csv").unlink()
    Delivery(file).send(lines, ended=True)
    assert not list((folder / "mlartifacts").rglob("history.csv")), "what was sent is not sent again"
    assert counted() == before


def test_delivering_what_is_left_passes_over_a_running_stage(folder):
    from basin.tracking.mirror import deliver_all

    stage = start(folder, then="print('trained', flush=True); time.sleep(3)")
    assert stage.stdout.readline() == "trained\n"
    while stage.poll() is None:
        assert deliver_all()
        time.sleep(0.1)
    stage.communicate()
    (found,) = runs()
    assert found.info.status == "FINISHED" and told(found) == {"loss": 1 / 3}


def test_a_line_cut_short_waits_for_its_end(folder):
    from basin.tracking.lines import complete_lines

    journal = folder / "j.jsonl"
    journal.write_text('{"time": 1}\n{"ti')
    with journal.open() as file, journal.open("a") as writer:
        assert list(complete_lines(file)) == [{"time": 1}]
        writer.write('me": 2}\n')
        writer.flush()
        assert list(complete_lines(file)) == [{"time": 2}]


def test_equal_requests_have_equal_digests():
    assert journal.digest({"a": 1, "b": (1, 2)}) == journal.digest(json.loads('{"b": [1, 2], "a": 1}'))


@pytest.mark.slow
def test_a_server_that_never_answers_holds_the_stage_for_a_bounded_time(folder):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        stage = start(folder, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{silent.getsockname()[1]}")
        out, err = stage.communicate()
    assert (stage.returncode, out) == (0, "stage done\n") and time.monotonic() - began < 45
    assert "does not take this run" in err


def test_a_temporary_workspace_of_dvc_writes_to_its_checkouts_mlflow(tmp_path, monkeypatch):
    """`dvc exp run --temp` and `--queue` delete it, and with it whatever database would be there."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (workspace := tmp_path / ".dvc" / "tmp" / "exps" / "tmpabc").mkdir(parents=True)
    monkeypatch.chdir(workspace)
    from basin.tracking.journal import uri

    assert uri() == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path)
    assert uri() == f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_a_journal_without_its_first_line_is_said_and_put_aside(folder, caplog):
    from basin.tracking.mirror import deliver_all

    for name, first in (("lost", ""), ("damaged", '{"time": 1, "start": {"experi\n')):
        (runs_of := folder / ".basin/runs/head").mkdir(parents=True, exist_ok=True)
        (runs_of / f"{name}.jsonl").write_text(f'{first}{{"time": 2, "metrics": {{"loss": 0.5}}}}\n{{"time": 3, "end": "FINISHED"}}\n')
    assert not deliver_all(), "once"
    told = [record.message for record in caplog.records if "first line" in record.message]
    assert told == [
        f".basin/runs/head/{name}.jsonl: its first line, which says whose run it is, is missing or damaged. "
        f"What is left is kept in {name}.headless."
        for name in ("damaged", "lost")
    ]
    assert deliver_all() and sorted(path.name for path in runs_of.iterdir()) == ["damaged.headless", "lost.headless"] and runs() == []


def test_a_clock_that_jumps_while_a_stage_runs(folder, monkeypatch):
    """A year forward, then back to before it began: the run arrives with its numbers."""
    real = time.time
    clock = iter([0, 366 * 86400, *[-3600] * 20])
    monkeypatch.setattr(journal.time, "time", lambda: real() + next(clock))
    with journal.run("head/sodef", {"epochs": 3}, {}, experiment="digits") as run:
        run.metrics({"loss": 0.5}, step=1)
        run.metrics({"loss": 0.25}, step=2)
    (found,) = runs()
    assert found.info.status == "FINISHED" and told(found)["loss"] == 0.25 and list((folder / ".basin/runs").rglob("*.*")) == []
