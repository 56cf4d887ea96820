"""Nothing that a guard started outlives whoever asked for it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from basin.repro import guard
from basin.repro.guard import Guards, Stopped

# A command with a child of its own, both ready when `pids` has two lines; with "stubborn" they ignore SIGTERM.
FAMILY = """
import os, signal, subprocess, sys, time
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "child" not in sys.argv: subprocess.Popen([sys.executable, __file__, "child", *sys.argv[1:]])
with open("pids", "a") as file: print(os.getpid(), file=file)
time.sleep(60)
"""


def wait_for(condition, seconds: float = 10.0):
    """The first true answer; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.05)
    pytest.fail(f"still not so after {seconds} s")


def family(folder: Path) -> list[int]:
    path = folder / "pids"
    pids = [int(line) for line in path.read_text().split()] if path.exists() else []
    return pids if len(pids) == 2 else []


def alive(pid: int) -> bool:
    """Running, not merely a zombie that nobody collected."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "family.py").write_text(FAMILY)
    monkeypatch.chdir(tmp_path)
    return [sys.executable, "family.py"]


@pytest.mark.parametrize(("code", "expected"), [("pass", 0), ("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_the_commands_exit_code_is_the_guards(code: str, expected: int):
    assert Guards().start([sys.executable, "-c", code]).wait() == expected


def test_a_command_that_does_not_exist_is_named(tmp_path: Path):
    process = Guards().start([str(tmp_path / "absent")], stderr=subprocess.PIPE, text=True)
    assert "absent: No such file or directory" in process.communicate()[1]
    assert process.returncode == 127


def test_end_takes_children_along_and_admits_no_more(command: list[str], tmp_path: Path):
    guards = Guards()
    process = guards.start(command)
    pids = wait_for(lambda: family(tmp_path))
    started = time.monotonic()
    guards.end()
    assert process.returncode == guard.STOPPED
    assert not any(map(alive, pids))
    assert time.monotonic() - started < guard.GRACE / 2, "obedient processes need no grace"
    with pytest.raises(Stopped):
        guards.start(command)


def test_a_killed_parent_takes_the_command_along(command: list[str], tmp_path: Path):
    root = Path(guard.__file__).parents[2]
    code = f"from basin.repro.guard import Guards; Guards().start({command!r}).wait()"
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(root)})
    pids = wait_for(lambda: family(tmp_path))
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(map(alive, pids)), seconds=5)


def test_a_killed_guard_takes_the_command_along_and_the_locks_are_held_until_then(command: list[str], tmp_path: Path):
    from basin.repro.slots import try_lock

    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    process = Guards().start(command, keep=[lock.fileno()])
    lock.close()
    pids = wait_for(lambda: family(tmp_path))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    wait_for(lambda: try_lock(tmp_path / "lock"), seconds=guard.GRACE / 2)
    assert not any(map(alive, pids))


def test_what_a_killed_command_leaves_behind_is_ended(command: list[str], tmp_path: Path):
    process = Guards().start(command)
    pids = wait_for(lambda: family(tmp_path))
    parent = next(pid for pid in pids if psutil.Process(pid).children())
    os.kill(parent, signal.SIGKILL)
    assert process.wait(5) == 128 + signal.SIGKILL
    assert not any(map(alive, pids))


def test_who_ignores_sigterm_is_killed_after_the_grace(command: list[str], tmp_path: Path):
    impatient = tmp_path / "guard.py"
    impatient.write_text(Path(guard.__file__).read_text().replace("GRACE = 10.0", "GRACE = 0.5"))
    process = subprocess.Popen([sys.executable, "-I", str(impatient), str(os.getpid()), *command, "stubborn"])
    pids = wait_for(lambda: family(tmp_path))
    process.terminate()
    assert process.wait(5) == guard.STOPPED
    assert not any(map(alive, pids))


def test_works_without_prctl(command: list[str], tmp_path: Path):
    """Where it is missing the guard cannot collect orphans itself, but ends them all the same."""
    elsewhere = tmp_path / "guard.py"
    elsewhere.write_text(Path(guard.__file__).read_text().replace('sys.platform == "linux"', 'sys.platform == "elsewhere"'))
    process = subprocess.Popen([sys.executable, "-I", str(elsewhere), str(os.getpid()), *command])
    pids = wait_for(lambda: family(tmp_path))
    process.terminate()
    process.wait(guard.GRACE + 5)
    assert not any(map(alive, pids))


def test_kept_files_stay_locked_until_the_command_is_gone(tmp_path: Path):
    from basin.repro.slots import take

    taken = take(1, ["0"], tmp_path)
    assert taken is not None
    process = Guards().start([sys.executable, "-c", "import time; time.sleep(1)"], keep=taken.keep)
    taken.release()
    assert take(1, ["0"], tmp_path) is None
    process.wait()
    assert take(1, ["0"], tmp_path) is not None
