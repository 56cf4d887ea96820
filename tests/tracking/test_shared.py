"""The stages of a run have one mirror, and lose nothing where it is killed or gives up."""

import os
import signal

import psutil
import pytest
from test_tracking import database, empty, folder, runs, start, until  # noqa: F401

from basin.tracking import shared

MIRROR = "assert not [c for c in __import__('psutil').Process().children() if 'basin.tracking.mirror' in c.cmdline()]"


@pytest.fixture
def mirror(folder):  # noqa: F811
    """The process of a run's mirror that takes journals."""
    before = psutil.Process().children()
    with shared.one_mirror():
        assert until(shared.is_alive)
        (process,) = set(psutil.Process().children()) - {*before}
        yield process
    assert until(lambda: has_ended(process))


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def started(then: str = "pass", stage: str = "head/sodef"):
    return start(os.getcwd(), stage, then, **{shared.PIPE: os.environ[shared.PIPE]})


def test_stages_of_a_run_start_no_mirror_of_their_own(mirror, folder):  # noqa: F811
    for stage in ("backbone/natural", "head/sodef"):
        assert started(MIRROR, stage).wait() == 0
        assert [(run.info.run_name, run.info.status) for run in runs()][0] == (stage, "FINISHED"), "at the stage's end it is there"
    assert len(runs()) == 2 and not list(folder.glob(".basin/runs/**/*.jsonl"))


@pytest.mark.slow
def test_a_stage_that_is_killed_is_seen_killed(mirror):
    stage = started("print('trained', flush=True); time.sleep(60)")
    assert stage.stdout.readline() == "trained\n"
    assert until(lambda: runs() and "loss" in runs()[0].data.metrics), "metrics come live"
    stage.send_signal(signal.SIGKILL)
    stage.communicate()
    assert until(lambda: runs()[0].info.status == "KILLED")
    assert started(MIRROR).wait() == 0 and [run.info.status for run in runs()] == ["FINISHED"]


@pytest.mark.slow
def test_where_the_mirror_is_killed_each_stage_has_its_own(mirror, folder):  # noqa: F811
    stage = started("print('trained', flush=True); time.sleep(1)")
    assert stage.stdout.readline() == "trained\n"
    mirror.kill()
    assert until(lambda: not shared.is_alive())
    stage.communicate()
    assert [run.info.status for run in runs()] == ["FINISHED"]
    assert started().wait() == 0 and not list(folder.glob(".basin/runs/**/*.jsonl"))


@pytest.mark.slow
def test_a_mirror_that_cannot_deliver_gives_up_and_the_stages_say_so_themselves(mirror, folder):  # noqa: F811
    (folder / "mlflow.db").write_text("damaged")
    for _ in range(2):
        _, said = (stage := started()).communicate()
        assert stage.returncode == 0 and "does not take this run" in said
    assert until(lambda: has_ended(mirror))
    assert len(list(folder.glob(".basin/runs/**/*.jsonl"))) == 2


def test_nothing_is_left_of_a_run(folder):  # noqa: F811
    with shared.one_mirror():
        assert until(shared.is_alive)
    assert shared.PIPE not in os.environ and until(lambda: not list((folder / ".basin").glob("mirror.*")))
