"""A lock whose holder was killed goes; one whose holder lives is waited for, not for ever."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel

from basin.errors import Absent
from basin.tracking import lease

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from mlflow import MlflowClient
from basin.tracking import lease
lease.RENEWAL = 0.1
with lease.held(MlflowClient(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    store = MlflowClient(f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")
    store.search_registered_models()  # makes the tables
    return store


@pytest.fixture
def holder(store: MlflowClient):
    """Another process that holds the lock."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "pipeline")])
    command = [sys.executable, "-c", HOLDER, store.tracking_uri]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()
    if lease._renewed(store):
        store.delete_registered_model(lease.NAME)


def test_the_lock_of_a_killed_process_is_waited_for_and_taken_away(store, holder, monkeypatch, caplog):
    monkeypatch.setattr(lease, "STALE", 1.0)
    holder.kill()
    caplog.set_level(logging.INFO)
    began = time.monotonic()
    with lease.held(store):
        assert time.monotonic() - began > lease.STALE
        assert lease._renewed(store)
    assert store.search_registered_models() == []
    assert [record.getMessage() for record in caplog.records] == [
        "registry: another process registers on this server; waiting for it to end, or 1 s if it was killed",
        "registry: the process that was registering on this server is gone; its lock is taken away",
    ]


def test_who_comes_late_to_a_stale_lock_leaves_the_next_holders(store):
    store.create_registered_model(lease.NAME, {"renewed": "of one that was killed"})
    (name,) = lease._taken_away(store, "of one that was killed")
    with lease.held(store):
        now = lease._renewed(store)
        assert lease._taken_away(store, "of one that was killed") == [] and lease._renewed(store) == now
    store.delete_registered_model(name)


@pytest.mark.slow
def test_a_process_that_lives_keeps_its_lock_and_the_wait_for_it_ends(store, holder, monkeypatch):
    monkeypatch.setattr(lease, "STALE", 2.0)
    monkeypatch.setattr(lease, "PATIENCE", 4.0)
    with pytest.raises(Absent) as raised, lease.held(store):
        pass
    assert str(raised.value) == (
        "registry: other processes register on this server without end (got 4 s of waiting). "
        "End the one that hangs; its lock goes 2 s later. Then try again."
    )
    assert holder.poll() is None and lease._renewed(store)


class AnswerLost(MlflowClient):
    """Of a server that is killed between a change and its answer; the client's second attempt finds the change made."""

    def create_registered_model(self, *arguments) -> RegisteredModel:
        super().create_registered_model(*arguments)
        return super().create_registered_model(*arguments)


def test_a_lock_whose_making_was_not_answered_is_its_makers(store):
    began = time.monotonic()
    with lease.held(AnswerLost(store.tracking_uri)):
        assert time.monotonic() - began < lease.STALE / 2
