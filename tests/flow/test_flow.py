"""The flow on real DVC projects and a real Prefect server: order, retries, cancels, GPUs."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from test_pins import post

from basin.repro import slots

MakeProject = Callable[..., Path]

# `python stage.py NAME OUT SECONDS [INPUT...]`: notes its PID, its GPU, its start and its end, and writes OUT.
STAGE = """
import os, sys, time
name, out, seconds, *inputs = sys.argv[1:]
def note(what): print(time.time(), name, what, os.environ.get("CUDA_VISIBLE_DEVICES", ""), os.getpid(), file=open("notes", "a"))
note("start")
time.sleep(float(seconds))
open(out, "w").write(name + "".join(open(path).read() for path in inputs))
note("end")
"""

FORK = """
stages:
  prepare:
    cmd: python stage.py prepare a 0.1
    outs: [a]
  left:
    cmd: python stage.py left b 1 a
    deps: [a]
    outs: [b]
  right:
    cmd: python stage.py right c 1 a
    deps: [a]
    outs: [c]
  join:
    cmd: python stage.py join d 0.1 b c
    deps: [b, c]
    outs: [d]
"""


def notes(place: Path) -> list[list[str]]:
    path = place / "notes"
    return [line.split(" ") for line in path.read_text().splitlines()] if path.exists() else []


def spans(place: Path) -> dict[str, tuple[float, float]]:
    found: dict[str, dict[str, float]] = {}
    for when, name, what, *_ in notes(place):
        found.setdefault(name, {})[what] = float(when)
    return {name: (span["start"], span["end"]) for name, span in found.items()}


def state_names(server: str, since: str) -> dict[str, str]:
    """Task names and state names of the latest flow run whose name is `since`, as the server tells them."""
    query: dict[str, Any] = {"flow_runs": {"name": {"any_": [since]}}, "sort": "START_TIME_DESC", "limit": 1}
    run = post(server, "flow_runs/filter", query)[0]
    for _ in range(50):  # task states reach the database a moment after the flow's
        tasks = post(server, "task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        if tasks and all(task["state_type"] not in ("RUNNING", "PENDING") or task["state_name"] == "NotReady" for task in tasks):
            break
        time.sleep(0.2)
    return {task["name"]: task["state_name"] for task in tasks}


@pytest.fixture
def workspace(project: MakeProject) -> MakeProject:
    def make(dvc_yaml: str, folder: str = "project") -> Path:
        place = project(dvc_yaml, folder)
        (place / "stage.py").write_text(STAGE)
        return place

    return make


def dvc(place: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-P", "-m", "dvc", *options], cwd=place, capture_output=True, text=True, check=True)


def test_branches_run_at_once_and_dvc_lock_is_as_dvc_repro_writes_it(flow: SimpleNamespace, prefect_server: str, workspace: MakeProject):
    plain = workspace(FORK, "plain")
    dvc(plain, "repro")
    place = workspace(FORK, "flow")
    flow.repro()
    when = spans(place)
    assert when["left"][0] < when["right"][1] and when["right"][0] < when["left"][1]
    assert when["prepare"][1] <= min(when["left"][0], when["right"][0])
    assert when["join"][0] >= max(when["left"][1], when["right"][1])
    assert (place / "dvc.lock").read_text() == (plain / "dvc.lock").read_text()
    assert set(state_names(prefect_server, "flow: everything").values()) == {"Completed"}

    before = notes(place)
    flow.repro()
    assert notes(place) == before
    assert state_names(prefect_server, "flow: everything") == dict.fromkeys(["prepare", "left", "right", "join"], "Skipped")
    assert dvc(place, "repro").stdout.count("didn't change, skipping") == 4

    (place / "dvc.lock").unlink()
    (place / "b").unlink()
    flow.repro(targets=["left"])
    assert state_names(prefect_server, "flow: left") == {"prepare": "Completed", "left": "Restored"}


def test_one_worker_runs_one_stage_at_a_time(flow: SimpleNamespace, workspace: MakeProject):
    place = workspace(FORK.replace(" 1 a", " 0.3 a"))
    flow.repro(targets=["left", "right"], workers=1)
    when = spans(place)
    assert when["left"][1] <= when["right"][0] or when["right"][1] <= when["left"][0]
    assert "join" not in when


KILLED_ONCE = """
import os, signal
from pathlib import Path
checkpoint = Path("checkpoint")
if not checkpoint.exists():
    checkpoint.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
Path("out").write_text("resumed from " + checkpoint.read_text())
"""


def test_a_killed_stage_is_tried_again_and_resumes(flow: SimpleNamespace, workspace: MakeProject):
    place = workspace("stages:\n  fragile:\n    cmd: python killed_once.py\n    outs: [out]\n")
    (place / "killed_once.py").write_text(KILLED_ONCE)
    flow.repro()
    assert (place / "out").read_text() == "resumed from half"


BRANCHES = """
stages:
  wrong:
    cmd: "echo tried >> tries; echo 'error: eps: too large' >&2; exit 2"
    outs: [a]
  after:
    cmd: python stage.py after b 0 a
    deps: [a]
    outs: [b]
  other:
    cmd: python stage.py other c 1
    outs: [c]
"""


def test_bad_input_is_not_retried_and_stops_its_own_branch_only(flow: SimpleNamespace, prefect_server: str, workspace: MakeProject):
    place = workspace(BRANCHES, "branches")
    with pytest.raises(flow.StagesFailed, match=r"^wrong: exit code 2: error: eps: too large$"):
        flow.repro()
    assert (place / "tries").read_text() == "tried\n"
    assert (place / "c").exists()
    assert state_names(prefect_server, "branches: everything") == {"wrong": "Failed", "after": "NotReady", "other": "Completed"}


def test_gpu_stages_get_a_device_each_and_never_share_it(flow: SimpleNamespace, workspace: MakeProject, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    stages = (f"  s{n}:\n    cmd: python stage.py s{n} o{n} 1.5\n    outs: [o{n}]\n    meta: {{gpu: 1}}\n" for n in range(3))
    place = workspace("stages:\n" + "".join(stages))
    flow.repro(workers=3)
    device = {name: gpu for _, name, what, gpu, _ in notes(place) if what == "start"}
    assert set(device.values()) == {"0", "1"}
    when = spans(place)
    for one in when:
        for other in when:
            if one < other and device[one] == device[other]:
                assert when[one][1] <= when[other][0] or when[other][1] <= when[one][0]
    first, second, third = sorted(when, key=lambda name: when[name])
    assert when[second][0] < when[first][1], "two devices, two at once"


def test_a_gpu_stage_runs_without_gpus(flow: SimpleNamespace, workspace: MakeProject, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    place = workspace("stages:\n  s:\n    cmd: python stage.py s o 0\n    outs: [o]\n    meta: {gpu: 1}\n")
    flow.repro()
    assert (place / "o").exists()


@pytest.mark.parametrize(
    ("visible", "ids"),
    [("", []), ("-1", []), ("0", ["0"]), ("0, 2", ["0", "2"]), ("GPU-8932f937,1", ["GPU-8932f937", "1"]), ("1,-1,0", ["1"])],
)
def test_devices_are_read_as_cuda_reads_them(visible: str, ids: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert slots.devices() == ids


def test_devices_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    smi = tmp_path / "nvidia-smi"
    listed = ["GPU 0: NVIDIA H100 (UUID: GPU-1)", "  MIG 1g.10gb Device 0: (UUID: MIG-1)", "GPU 1: NVIDIA H100 (UUID: GPU-2)"]
    smi.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in listed))
    smi.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert slots.devices() == ["0", "1"]
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert slots.devices() == []


def start(place: Path, *targets: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "basin.flow", *targets]
    return subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def stage_pid(place: Path, patience: float = 30) -> int:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if noted := notes(place):
            return int(noted[-1][-1])
        time.sleep(0.05)
    pytest.fail("the stage did not start")


def gone(pids: set[int], patience: float = 5) -> bool:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        time.sleep(0.05)
    return False


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


LONG = "stages:\n  long:\n    cmd: python stage.py long out 60\n    outs: [out]\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stopped_flow_leaves_no_orphan_and_a_second_one_is_refused_until_then(
    prefect_server: str, workspace: MakeProject, number: signal.Signals
):
    place = workspace(LONG)
    first = start(place)
    stage = stage_pid(place)
    family = {first.pid, stage} | {child.pid for child in psutil.Process(first.pid).children(recursive=True)}
    assert len(family) >= 4, "flow, guard, dvc, stage"
    if number == signal.SIGKILL:
        second = start(place)
        said = second.communicate(timeout=60)[0]
        assert second.returncode == 2
        assert said == (
            f"error: .basin/flow.lock: another run is at work in this workspace (PID {first.pid}). "
            f"Wait for it to end, or stop it with: kill {first.pid}.\n"
        )
    first.send_signal(number)
    first.communicate(timeout=30)
    assert first.returncode == (-number if number == signal.SIGKILL else 130)
    assert gone(family)
    assert not (place / "out").exists()


@pytest.mark.slow
def test_a_flows_own_server_is_replaced_when_it_dies_and_goes_with_the_flow(project: MakeProject, monkeypatch: pytest.MonkeyPatch):
    """Without PREFECT_API_URL the flow brings its own server; the database stays in the workspace."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    place = project(LONG)
    (place / "stage.py").write_text(STAGE)
    process = start(place)
    stage = stage_pid(place, patience=90)

    def servers() -> list[psutil.Process]:
        found = psutil.Process(process.pid).children(recursive=True)
        return [child for child in found if cmdline(child)[1:4] == ["-m", "prefect", "server"]]

    (first,) = servers()
    first.kill()
    deadline = time.monotonic() + 30
    while not [server for server in servers() if server != first] and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [server for server in servers() if server != first]
    family = {process.pid, stage} | {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    process.kill()
    process.communicate()
    assert gone(family, patience=15)
    assert (place / ".basin/prefect/prefect.db").exists()


def test_the_command_says_what_failed_why_and_how_to_go_on(prefect_server: str, workspace: MakeProject):
    place = workspace(BRANCHES)
    process = start(place, "after")
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert "failed: wrong: exit code 2: error: eps: too large\nWhat is done is kept. To go on: basin flow after\n" in said
    assert re.search(r"Task run 'wrong' - error: eps: too large", said), "the stage's lines are in the task's log"


def test_bad_input_is_told_before_a_server_is_started(project: MakeProject, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    place = project(FORK)
    process = start(place, "jion")
    assert process.communicate(timeout=60)[0] == "error: target: no such stage (got 'jion'). Did you mean 'join'?\n"
    assert process.returncode == 2
    assert not (place / ".basin/prefect/server.log").exists()


@pytest.mark.parametrize(
    ("url", "said", "code"),
    [
        ("nonsense", "is no address (got 'nonsense'). Write http://HOST:PORT/api, or unset it.", 2),
        ("http://127.0.0.1:9/api", "no server answers (got http://127.0.0.1:9/api: ConnectError: ", 75),
    ],
)
def test_a_server_that_is_none_is_a_sentence(url: str, said: str, code: int, project: MakeProject, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PREFECT_API_URL", url)
    process = start(project(FORK))
    last = process.communicate(timeout=60)[0].splitlines()[-1]
    assert last.startswith(f"error: PREFECT_API_URL: {said}") and process.returncode == code


HALFWAY = """
import time
from pathlib import Path
import torch
from basin.evaluation import outcomes
images, ones = torch.zeros(4, 1, 2, 2), torch.ones(4, dtype=torch.int64)
untouched = outcomes.Outcomes.untouched(ones, images, ones, torch.zeros(4, 3), ones.float(), 4)
folder = Path(".basin/checkpoints/report")
folder.mkdir(parents=True)
(folder / "1.safetensors").write_bytes(outcomes.pack(untouched, 1, 2))
time.sleep(5)
"""


def test_the_results_are_on_prefects_pages(flow: SimpleNamespace, prefect_server: str, workspace: MakeProject):
    place = workspace(
        "stages:\n  report:\n    cmd:\n    - python halfway.py\n"
        "    - mkdir -p report && echo > report/index.html\n"
        "    - printf 'model,robust\\nbackbone/natural,0.25\\n' > report/table.csv\n"
        "    outs: [report/table.csv, report/index.html]\n"
    )
    (place / "halfway.py").write_text(HALFWAY)
    flow.repro()
    found = post(prefect_server, "artifacts/latest/filter", {})
    data = {artifact["key"]: artifact["data"] for artifact in found}
    assert '"backbone/natural"' in data["results"]
    assert "| backbone/natural | 0.25 |" in data["summary"]
    assert "report/index.html" in data["report"]
    assert "| report | Completed |" in data["stages"]
    assert data["progress-report"] == 100


# Killed at its first start, after its checkpoint; wrong at radii above 0.3.
POINT = """
import json, os, signal, sys
from pathlib import Path
from ruamel.yaml import YAML
eps = YAML(typ="safe").load(Path("params.yaml"))["threat"]["eps"]
print(eps, file=open(os.environ["STARTS"], "a"))
if eps > 0.3:
    sys.stderr.write("error: eps: too large\\n")
    sys.exit(2)
checkpoint = Path(os.environ["BASIN_CHECKPOINTS"], str(eps))
if not checkpoint.exists():
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
Path("metrics.json").write_text(json.dumps({"robust": eps}))
"""


def test_a_sweep_is_a_table_of_experiments_whose_killed_points_resume(
    flow: SimpleNamespace, prefect_server: str, project: MakeProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    place = project(
        "stages:\n  point:\n    cmd: python point.py\n    deps: [point.py]\n    params: [threat.eps]\n"
        "    metrics:\n    - metrics.json: {cache: false}\n"
    )
    (place / "point.py").write_text(POINT)
    (place / ".dvc/config").write_text("[core]\n    analytics = false\n")
    (place / ".gitignore").write_text(".basin\n.dvc/cache\n.dvc/tmp\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "start"]):
        subprocess.run(["git", *words], check=True)
    before = (place / "params.yaml").read_text()
    with pytest.raises(flow.StagesFailed, match=r"exit code 2: error: eps: too large$"):
        flow.sweep(table=[{"threat.eps": 0.1}, {"threat.eps": 0.4}])
    assert sorted((tmp_path / "starts").read_text().split()) == ["0.1", "0.1", "0.4"]
    assert (place / "params.yaml").read_text() == before
    (page,) = post(prefect_server, "artifacts/latest/filter", {"artifacts": {"key": {"any_": ["sweep"]}}})
    assert '"robust": 0.1' in page["data"]


TRACKED = """
import sys
from pathlib import Path
from basin.tracking import journal
with journal.run(name := sys.argv[1], {}, {}, experiment="digits"):
    Path(name).touch()
"""


@pytest.mark.slow
def test_stages_at_once_stand_under_the_one_run_of_their_flow(flow: SimpleNamespace, project: MakeProject, monkeypatch: pytest.MonkeyPatch):
    for name in ("BASIN_TRACKING", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    place = project(
        "stages:\n  both:\n    foreach: [left, right]\n    do:\n      cmd: python tracked.py ${item}\n      outs: ['${item}']\n"
    )
    (place / "tracked.py").write_text(TRACKED)
    flow.repro()
    from basin.tracking.client import client

    runs = {run.data.tags["stage"]: run for run in client().search_runs(["1"])}
    over = runs.pop("repro")
    assert over.info.status == "FINISHED" and over.info.run_name.endswith(" digits-linf-0.15")
    assert {name: run.data.tags["mlflow.parentRunId"] for name, run in runs.items()} == dict.fromkeys(["left", "right"], over.info.run_id)
    flow.repro()
    assert len(client().search_runs(["1"])) == 3, "where nothing ran there is no run"
