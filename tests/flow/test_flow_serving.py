"""A real server, a real `basin serve` with its worker, and what happens to them: forms, schedules, cancels, kills."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from conftest import ROOT
from ruamel.yaml import YAML
from test_flow import FORK, STAGE, cmdline, gone, notes, spans, stage_pid

from basin import environment
from basin.flow import server
from basin.repro import slots

pytestmark = pytest.mark.slow
LONG = "stages:\n  long:\n    cmd: python steps.py\n    outs: [out]\n"
# Forty steps of half a second, and on while there is a file `hold`. The checkpoint is how many are done, `steps` the list of all that
# were begun.
STEPS = """
import os, time
from pathlib import Path
checkpoint, done = Path("checkpoint"), 0
if checkpoint.exists(): done = int(checkpoint.read_text())
print(time.time(), "long start", "-", os.getpid(), file=open("notes", "a"), flush=True)
while done < int(os.environ.get("STEPS", "40")) or Path("hold").exists():
    print(done, os.getpid(), file=open("steps", "a"), flush=True)
    time.sleep(0.5)
    checkpoint.write_text(str(done := done + 1))
Path("out").write_text("done")
print(time.time(), "long end", "-", os.getpid(), file=open("notes", "a"), flush=True)
"""
CLI = [sys.executable, "-c", "from basin.cli.app import main; main()"]


class Served:
    """A Prefect server with a home and a port of its own, and `basin serve` in a workspace."""

    def __init__(self, home: Path, place: Path, schedule: dict[str, Any] | None = None, extra: dict[str, str] | None = None):
        self.home, self.place, self.port = home, place, server.free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.env |= environment.SILENT | environment.SAFE | {"PREFECT_HOME": str(home), "PREFECT_API_URL": self.url}
        self.env |= {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2", "PREFECT_SERVER_API_PORT": str(self.port)}
        self.env |= extra or {}
        password = (extra or {}).get("PREFECT_API_AUTH_STRING")
        self.password = tuple(password.split(":")) if password else None
        self.processes: dict[str, subprocess.Popen] = {}
        content = YAML(typ="safe").load(ROOT / "prefect.yaml")
        content["deployments"][0] |= {"schedules": [schedule]} if schedule else {}
        YAML().dump(content, place / "prefect.yaml")

    def start(self, what: str) -> None:
        command = [sys.executable, "-m", "prefect", "server", "start"] if what == "server" else [*CLI, "serve"]
        with (self.place / f"{what}.log").open("ab") as log:
            self.processes[what] = subprocess.Popen(
                command, cwd=self.place, env=self.env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        until(lambda: self.healthy() if what == "server" else self.worker(), 120)

    def healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def worker(self) -> psutil.Process | None:
        """The worker that `basin serve` looks after, when the server knows it."""
        found = [p for p in descendants(self.processes["serve"].pid) if cmdline(p)[1:5] == ["-m", "prefect", "worker", "start"]]
        return found[0] if found else None

    def call(self, path: str, body: dict[str, Any] | None = None, method: str = "POST") -> Any:
        for _ in range(20):  # as Prefect's own client does: SQLite's database may be locked for a moment
            answer = httpx.request(method, f"{self.url}/{path}", json=body, timeout=30, auth=self.password)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(0.5)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def deployment(self, name: str = "repro/repro") -> dict[str, Any]:
        return self.call(f"deployments/name/{name}", None, "GET")

    def run(self, **parameters: Any) -> str:
        return self.call(f"deployments/{self.deployment()['id']}/create_flow_run", {"parameters": parameters})["id"]

    def state(self, run: str) -> str:
        try:
            return self.call(f"flow_runs/{run}", None, "GET")["state"]["name"]
        except httpx.HTTPError:
            return "unknown"

    def history(self, run: str) -> list[str]:
        states = httpx.get(f"{self.url}/flow_run_states/", params={"flow_run_id": run}, auth=self.password).json()
        return [state["name"] for state in sorted(states, key=lambda state: state["timestamp"])]

    def end(self) -> None:
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def until(condition: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.2)
    pytest.fail(f"still not so after {seconds} s")


@pytest.fixture
def served(project: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """`served(dvc_yaml, schedule, extra environment)`: all of it, started."""
    started = []

    def make(dvc_yaml: str, schedule: dict[str, Any] | None = None, extra: dict[str, str] | None = None) -> Served:
        place = project(dvc_yaml)
        (place / "stage.py").write_text(STAGE)
        (place / "steps.py").write_text(STEPS)
        started.append(all_of_it := Served(tmp_path / "prefect", place, schedule, extra))
        all_of_it.start("server")
        all_of_it.start("serve")
        until(lambda: all_of_it.call("deployments/filter", {}), 60)
        return all_of_it

    yield make
    for one in started:
        one.end()


def test_a_schedule_of_seconds_creates_a_run_that_ends_right(served: Callable[..., Served]):
    here = served(FORK, {"interval": 5, "active": True})
    ended = {"sort": "START_TIME_ASC", "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    run = until(lambda: here.call("flow_runs/filter", ended), 180)[0]
    assert run["auto_scheduled"] and run["state"]["message"] == "4 completed"
    assert (here.place / "d").exists()


def test_a_form_refuses_schedules_fire_cancels_reach_the_stage(served: Callable[..., Served]):
    here = served(LONG, {"interval": 5, "active": True})
    with pytest.raises(httpx.HTTPStatusError) as refused:
        here.run(workers=0)
    assert refused.value.response.status_code in (409, 422)
    assert "0 is less than the minimum of 1" in refused.value.response.text

    # The schedule of 5 s fires; its run starts; the schedule is paused.
    until(lambda: notes(here.place), 180)
    schedule = here.deployment()["schedules"][0]["id"]
    here.call(f"deployments/{here.deployment()['id']}/schedules/{schedule}", {"active": False}, "PATCH")
    for waiting in here.call("flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}):
        here.call(f"flow_runs/{waiting['id']}", None, "DELETE")  # the backlog of a schedule that is faster than its runs
    run = here.call("flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}})[0]
    assert run["auto_scheduled"]
    assert {"data: digits", "threat: linf 0.15"} < set(run["tags"])
    assert any(tag.startswith("commit: ") for tag in run["tags"])

    # A cancel ends dvc and the stage within seconds, and the checkpoint stays.
    until(lambda: (here.place / "checkpoint").exists(), 60)
    stage = stage_pid(here.place)
    asked = time.monotonic()
    here.call(f"flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})
    assert gone({stage}, patience=25)
    assert time.monotonic() - asked < 25
    until(lambda: here.state(run["id"]) == "Cancelled", 60)
    done = int((here.place / "checkpoint").read_text())
    assert 0 < done < 40

    # Started again, it goes on from there; nothing is done twice.
    again = here.run()
    until(lambda: here.state(again) == "Completed", 180)
    steps = [int(line.split()[0]) for line in (here.place / "steps").read_text().splitlines()]
    assert steps.count(done - 1) == 1 and steps[-1] == 39

    # Served again, the schedule is still paused.
    here.processes["serve"].terminate()
    here.processes["serve"].wait(60)
    here.start("serve")
    assert [one["active"] for one in here.deployment()["schedules"]] == [False]


def test_worker_killed_ten_times_server_twice(served: Callable[..., Served]):
    """One flow run: it ends right, and the last attempt of each stage is one."""
    here = served(FORK.replace("python stage.py right c 1 a", "python steps.py && cat a > c"))
    (hold := here.place / "hold").touch()
    run, draw = here.run(workers=2), random.Random(0)
    victims = draw.sample(["worker"] * 10 + ["server"] * 2, 12)
    for victim in victims:
        until(lambda: here.state(run) == "Running", 120)
        time.sleep(draw.uniform(0, 10))
        if victim == "server":
            os.killpg(here.processes["server"].pid, signal.SIGKILL)
            here.processes["server"].wait()
            here.start("server")
        else:
            worker = until(here.worker, 60)
            worker.kill()
            gone({worker.pid})
            until(here.worker, 60)
    hold.unlink()
    until(lambda: here.state(run) == "Completed", 240)
    assert here.history(run).count("Crashed") == here.history(run).count("AwaitingRetry") == 10
    ended = [name for _, name, what, *_ in notes(here.place) if what == "end"]
    assert sorted(ended) == ["join", "left", "long", "prepare"]
    steps = [int(line.split()[0]) for line in (here.place / "steps").read_text().splitlines()]
    n = steps[-1] + 1
    assert sorted(set(steps)) == list(range(n))
    assert len(steps) <= n + 10, "a killed attempt repeats the step that it was in, no more"
    print(f"{victims}: {len(steps)} steps of {n} begun; states: {here.history(run)}")
    assert subprocess.run([sys.executable, "-P", "-m", "dvc", "status", "-q"], cwd=here.place, check=False).returncode == 0
    # No slot is lost: neither ours nor any of the server's.
    assert slots.take(0, [], here.place / ".basin", cpus=2, workers=2) is not None
    assert not any(limit["active_slots"] for limit in here.call("v2/concurrency_limits/filter", {}))


def test_two_workspaces_serve_one_pool_and_a_second_serve_in_one_says_why_not(served: Callable[..., Served], project):
    here = served(LONG)
    second = subprocess.run([*CLI, "serve"], cwd=here.place, env=here.env, capture_output=True, text=True, timeout=60, check=False)
    pid = here.processes["serve"].pid
    assert (second.returncode, second.stderr) == (
        2,
        f"error: .basin/serve.lock: another basin serve is at work in this workspace (PID {pid}). "
        f"Wait for it to end, or stop it with: kill {pid}.\n",
    )
    (place := project(LONG, "other") / "steps.py").write_text(STEPS)
    there = Served(here.home, place.parent, extra={"PREFECT_API_URL": here.url})
    try:
        there.start("serve")
        runs = [here.run(), here.run()]
        until(lambda: notes(here.place) and notes(there.place), 120)  # a run each
        until(there.worker, 60).kill()
        until(lambda: all(here.state(run) == "Completed" for run in runs), 240)
    finally:
        there.end()
    states = Counter(state for run in runs for state in here.history(run))
    assert states["Crashed"] == states["AwaitingRetry"] == 1, "both look after the pool, and one of them starts the run again"
    assert [line[2] for line in notes(here.place)] == ["start", "end"]
    assert len((here.place / "steps").read_text().splitlines()) == 40
    assert len((there.place / "steps").read_text().splitlines()) <= 41, "the step that was killed is done twice, no other"


def test_a_run_whose_machine_died_is_marked_crashed_within_two_minutes(served: Callable[..., Served]):
    here = served(LONG)
    run = here.run()
    stage = until(lambda: notes(here.place), 60)[-1][-1]
    family = [here.processes["serve"].pid, *(process.pid for process in descendants(here.processes["serve"].pid))]
    died = time.monotonic()
    for pid in family:
        os.kill(pid, signal.SIGKILL)
    until(lambda: "Crashed" in here.history(run), 120)
    print(f"marked crashed {time.monotonic() - died:.0f} s after its death")
    assert gone({int(stage)})
    # Another worker, as of another machine, takes it up.
    here.start("serve")
    until(lambda: here.state(run) == "Completed", 120)
    assert len([line for line in notes(here.place) if line[2] == "end"]) == 1


def test_a_run_that_is_alive_goes_on_after_the_server_was_away_for_long(served: Callable[..., Served]):
    """The server has missed its heartbeats and marks it crashed; nothing of it is interrupted or done twice."""
    here = served(LONG, extra={"STEPS": "320"})
    run = here.run()
    until(lambda: notes(here.place), 60)
    os.killpg(here.processes["server"].pid, signal.SIGKILL)
    here.processes["server"].wait()
    time.sleep(90)
    here.start("server")
    until(lambda: here.state(run) == "Completed", 240)
    print(here.history(run))
    assert len((here.place / "steps").read_text().splitlines()) == 320
    assert [line[2] for line in notes(here.place)] == ["start", "end"]


TWELVE = {f"s{n:02}": (30, 36, 42, 52)[n % 4] for n in range(12)}  # 480 s of sleep: 120 s on four slots, if they cost nothing


def test_twelve_stages_on_four_slots_take_at_most_a_quarter_more_than_the_ideal(flow, project):
    stages = [f"  {name}:\n    cmd: python stage.py {name} o{name} {seconds}\n    outs: [o{name}]\n" for name, seconds in TWELVE.items()]
    place = project("stages:\n" + "".join(stages))
    (place / "stage.py").write_text(STAGE)
    from basin.flow import order

    order.remember(TWELVE)
    began, started = time.time(), time.monotonic()
    flow.repro(workers=4)
    wall, when = time.monotonic() - started, spans(place)
    events = sorted([(start, 1) for start, _ in when.values()] + [(end, -1) for _, end in when.values()])
    at_once = [sum(change for _, change in events[: i + 1]) for i in range(len(events))]
    assert max(at_once) == 4
    print(f"wall {wall:.1f} s, ideal {sum(TWELVE.values()) / 4:.1f} s; first start after {min(when.values())[0] - began:.1f} s")
    assert wall <= 1.25 * sum(TWELVE.values()) / 4
