"""`basin repro` stopped, beside another run, and in a checkout without git: one sentence each."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PARAMS

MakeProject = Callable[[str], Path]

# The stage lasts until the file `go` is there.
SLOW = "stages:\n  slow:\n    cmd: touch begun && while [ ! -e go ]; do sleep 0.1; done && echo 1 > out\n    outs: [out]\n"
CLI = [sys.executable, "-c", "from basin.cli.app import main; main()"]
PLAIN = [sys.executable, "-P", "-m", "dvc", "repro", "slow"]


def start(place: Path, *command: str) -> subprocess.Popen:
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}  # no run gets as far as asking it
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def begun(place: Path, patience: float = 60) -> None:
    deadline = time.monotonic() + patience
    while not (place / "begun").exists():
        assert time.monotonic() < deadline, "the stage did not start"
        time.sleep(0.05)


def test_ctrl_c_stops_within_five_seconds_and_says_how_to_go_on(project: MakeProject):
    place = project(SLOW)
    first = start(place, *CLI, "repro", "slow")
    begun(place)
    asked = time.monotonic()
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=30)[0]
    assert time.monotonic() - asked < 5
    assert first.returncode == 130
    assert said.splitlines()[-1] == "Stopped; what is done is kept. To go on: basin repro slow"
    assert "Traceback" not in said and "KeyboardInterrupt" not in said
    (place / "go").touch()
    again = start(place, *CLI, "repro", "slow")
    assert again.wait(60) == 0 and (place / "out").exists()


def test_a_stage_that_is_none_is_a_sentence(project: MakeProject):
    process = start(project(SLOW), *CLI, "repro", "slwo")
    said = process.communicate(timeout=60)[0]
    assert (said.splitlines()[-1], process.returncode) == ("error: target: no such stage (got 'slwo'). Did you mean 'slow'?", 2)


@pytest.mark.parametrize("first", ["basin", "dvc"])
def test_a_second_repro_says_that_it_waits_and_then_runs(project: MakeProject, first: str):
    place = project(SLOW)
    holder = start(place, *([*CLI, "repro", "slow"] if first == "basin" else PLAIN))
    begun(place)
    second = start(place, *CLI, "repro", "slow")
    assert second.stdout
    who = "workspace: another dvc is at work here" if first == "dvc" else ".basin/flow.lock: another run is at work in this workspace"
    pid = holder.pid
    assert second.stdout.readline() == f"{who} (PID {pid}). Waiting for it to end; Ctrl-C gives up.\n"
    assert second.poll() is None
    (place / "go").touch()
    said = second.communicate(timeout=60)[0]
    assert (holder.wait(60), second.returncode) == (0, 0), said
    assert "Stage 'slow' didn't change, skipping" in said
    holder.communicate()


def test_a_flow_beside_repro_says_why_not(project: MakeProject):
    place = project(SLOW)
    first = start(place, *CLI, "repro", "slow")
    begun(place)
    flow = start(place, *CLI, "flow")
    said = flow.communicate(timeout=60)[0]
    assert flow.returncode == 2
    assert said == (
        f"error: .basin/flow.lock: another run is at work in this workspace (PID {first.pid}). "
        f"Wait for it to end, or stop it with: kill {first.pid}.\n"
    )
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=30)


@pytest.mark.parametrize("command", ["repro", "flow"])
def test_without_git_one_sentence(project: MakeProject, command: str):
    place = project(SLOW)
    (place / ".dvc/config").write_text("[core]\n    analytics = false\n", encoding="utf-8")
    ended = start(place, *CLI, command)
    said = ended.communicate(timeout=60)[0]
    assert ended.returncode == 2
    assert said == f"error: workspace: not a git repository (got {place}). Make it one: git init; DVC and commits need it.\n"
    assert shutil.which("git") and not (place / "begun").exists()


def test_a_lock_file_half_written_by_a_killed_dvc_is_put_right(project: MakeProject):
    place = project(SLOW)
    (place / "go").touch()
    assert start(place, *CLI, "repro", "slow").wait(60) == 0
    whole = (place / "dvc.lock").read_bytes()
    (place / "dvc.lock").write_bytes(whole[: len(whole) // 2])
    assert start(place, *CLI, "repro", "slow").wait(60) == 0
    assert (place / "dvc.lock").read_bytes() == whole


def test_a_second_serve_says_why_not(project: MakeProject):
    from basin.repro import slots

    place = project(SLOW)
    with slots.only_run(Path(".basin/serve.lock")):
        second = start(place, *CLI, "serve")
        said = second.communicate(timeout=60)[0]
    assert second.returncode == 2
    assert said == (
        f"error: .basin/serve.lock: another basin serve is at work in this workspace (PID {os.getpid()}). "
        f"Wait for it to end, or stop it with: kill {os.getpid()}.\n"
    )


def test_what_dvc_would_miss_in_params_is_said_with_what_to_add(tmp_path: Path):
    """All that Basin has a default for; with those lines added DVC reads graph and params."""
    root = Path(__file__).parents[2]
    (tmp_path / "pipeline").symlink_to(root / "pipeline")
    shutil.copy(root / "dvc.yaml", tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = True\n    analytics = false\n", encoding="utf-8")
    (tmp_path / "params.yaml").write_text(PARAMS, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(root)}

    def do(*words: str) -> tuple[int, str]:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    why = "DVC asks for it, also where its default will do (got nothing)"
    lines = {"adversarial": "{}", "device": '"auto"', "head": "{}", "registry": "{}", "threads": "1"}
    said = [f"error: params.yaml: {key}: {why}. Add `{key}: {line}`." for key, line in lines.items()]
    said.insert(1, f"error: params.yaml: attack: batch: {why}. Add `batch: 256`.")
    assert do(*CLI, "check") == (2, "\n".join(said) + "\n") == do(*CLI, "repro")
    whole = PARAMS.replace("images: 10", "images: 10, batch: 256") + "".join(f"{key}: {line}\n" for key, line in lines.items())
    (tmp_path / "params.yaml").write_text(whole, encoding="utf-8")
    assert do(*CLI, "check") == (0, "")
    assert do(sys.executable, "-P", "-m", "dvc", "repro", "--dry", "prepare")[0] == 0
