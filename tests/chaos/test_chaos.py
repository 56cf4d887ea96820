"""`make chaos`: a run of real stages, killed outright at random moments until it is done, ends as one that was left alone.

CHAOS_KILLS="50 10 10" is how many SIGKILLs hit the run's own processes, Prefect's worker and MLflow's server; CHAOS_SEED draws the moments.
Each of the three gives up after two minutes a kill and twenty more; its last run has five minutes a stage.
"""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from ruamel.yaml import YAML
from test_flow_serving import Served, until

from basin import environment
from basin.flow import server
from basin.tracking import lease

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
CLI = [sys.executable, "-c", "from basin.cli.app import main; main()"]
RUN, WORKER, SERVER = map(int, os.environ.get("CHAOS_KILLS", "50 10 10").split())
SEED = int(os.environ.get("CHAOS_SEED", "0"))
PATIENCE = 300.0  # seconds for one stage, on a busy machine
BOUND = 120.0  # seconds a kill, and ten such more
RESUMED = re.compile("resuming at phase|goes on after")
WORDS = {
    "guard": "guard.py",
    "stage": "-m basin.stages.",
    "dvc": "dvc.cli",
}  # in the command lines of the run's processes, the first found
PARAMS = """
seed: 0
device: cpu
threads: 1
data: {kind: digits, train_limit: 400, test_limit: 100}
threat: {norm: linf, eps: 0.1}
backbone:
  natural:
    backbone: {kind: convnet, channels: [8, 16], hidden: 32}
    training: {kind: pgd, steps: 2}
    schedule: {epochs: 10, batch: 25, rate: 0.01}
adversarial:
  pgd: {from: backbone/natural, training: {kind: pgd, steps: 2}, schedule: {epochs: 8, batch: 25}}
head:
  sodef:
    from: adversarial/pgd
    head: {kind: sodef, width: 16, T: 2.0, solver: {steps: 4}}
    training: {kind: natural}
    schedule:
      features: {epochs: 5, batch: 20, rate: 0.02}
      stability: {epochs: 1, batch: 32, rows: 4}
      classifier: {epochs: 5, batch: 20, rate: 0.05}
suites:
  tiny:
    attacks:
      pgd: {kind: pgd, steps: 20}
      square: {kind: square, queries: 100}
    curve: {attack: {kind: pgd, steps: 20}, times: [0.5, 2]}
attack: {models: [backbone/natural, head/sodef], suites: [tiny], images: 100, batch: 10}
registry: {name: null}
"""
RESUMING = ["backbone@natural", "adversarial@pgd", "head@sodef", "attack@backbone/natural-tiny", "attack@head/sodef-tiny", "exchange"]
STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    while STARTED:
        STARTED.pop().kill()  # its guard ends the rest


class Checkout:
    """A checkout without git, with its own code, in which `basin repro` runs."""

    def __init__(self, place: Path, **extra: str):
        self.place, self.said = place, place / "said"
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "pipeline", place / "pipeline", ignore=ignore)
        (place / ".dvc").mkdir()
        (place / ".dvc/config").write_text("[core]\n    no_scm = True\n    analytics = false\n", encoding="utf-8")
        shutil.copy(ROOT / "dvc.yaml", place)
        (place / "params.yaml").write_text(PARAMS, encoding="utf-8")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_", "BASIN_"))}
        self.env = kept | {
            "PYTHONPATH": str(place / "pipeline"),
            "CUDA_VISIBLE_DEVICES": "",
            "DVC_NO_ANALYTICS": "1",
            "COLUMNS": "200",
            **extra,
        }

    def start(self) -> subprocess.Popen:
        with self.said.open("ab") as log:
            STARTED.append(subprocess.Popen([*CLI, "repro"], cwd=self.place, env=self.env, stdout=log, stderr=log, start_new_session=True))
        return STARTED[-1]

    def begun(self, after: int) -> list[str]:
        """The stages that were begun since the log had `after` characters."""
        return re.findall(r"^Running stage '(.*)':", self.said.read_text(encoding="utf-8")[after:], re.MULTILINE)

    def checkpoint(self, stage: str) -> bool:
        name = stage.replace("@", "/").removesuffix("-tiny")
        return any(self.place.glob(f".basin/checkpoints/{name}/**/*.safetensors"))

    def made(self) -> dict[str, str]:
        """path -> DVC's digest, of every output; and the table."""
        stages = YAML(typ="safe").load(self.place / "dvc.lock")["stages"]
        outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}
        return outs | {"table": (self.place / "report/table.csv").read_text(encoding="utf-8")}

    def deliver(self) -> None:
        """What could not be told to MLflow during the run; all of it arrives."""
        command = [sys.executable, "-m", "basin.tracking.mirror"]
        assert subprocess.run(command, cwd=self.place, env=self.env, check=False).returncode == 0
        until(lambda: not list(self.place.glob(".basin/runs/**/*.jsonl")), 60)  # mirrors outlive their stages for a while

    def resumed(self) -> set[str]:
        """The stages that said they went on from a checkpoint."""
        parts = re.split(r"^Running stage '(.*)':", self.said.read_text(encoding="utf-8"), flags=re.MULTILINE)
        return {name for name, text in zip(parts[1::2], parts[2::2], strict=True) if RESUMED.search(text)}


def family(process: subprocess.Popen) -> dict[str, list[psutil.Process]]:
    """The run's processes, by what they are."""
    found: dict[str, list[psutil.Process]] = {"all": []}
    try:
        every = [top := psutil.Process(process.pid), *top.children(recursive=True)]
    except psutil.Error:
        return found
    for one in every:
        try:
            words = " ".join(one.cmdline())
        except psutil.Error:
            continue
        kind = "basin" if one is top else next((kind for kind, word in WORDS.items() if word in words), "")
        found["all"].append(one)
        if kind and (kind != "guard" or one.ppid() == top.pid):  # a killed witness of the guard stops nothing
            found.setdefault(kind, []).append(one)
    return found


def at_checkpoint(checkout: Checkout, process: subprocess.Popen, stage: str, after: int) -> dict[str, list[psutil.Process]]:
    """Returns as soon as the stage has a checkpoint, with the run's processes, which take too long to be looked up then."""
    members = family(process)
    while process.poll() is None and not checkout.checkpoint(stage) and checkout.begun(after)[-1] == stage:
        if "stage" not in members:
            members = family(process)
        time.sleep(0.001)
    return members


def kill(process: subprocess.Popen, draw: random.Random, members: dict[str, list[psutil.Process]]) -> str:
    """SIGKILL to one of the run's processes or to all; returns when all are gone, the mirrors of the stages aside."""
    victim = draw.choice(sorted(members))
    for one in members[victim]:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(60)
    psutil.wait_procs([one for one in members["all"] if one.pid != process.pid], 60)
    return victim


def bounded(began: float, kills: int) -> None:
    assert time.monotonic() - began < BOUND * (10 + kills), "too slow: make chaos is to end"


def until_begun(checkout: Checkout, process: subprocess.Popen, after: int, passed: set[str]) -> str | None:
    """The last stage that is begun and not passed over; None where the run ends before."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        if waiting := [stage for stage in checkout.begun(after) if stage not in passed]:
            return waiting[-1]
        if ended:
            return None
        time.sleep(0.01)
    pytest.fail(checkout.said.read_text(encoding="utf-8")[-2000:])


def remembered(database: Path) -> dict[str, Any]:
    """What MLflow has of a run: how often each stage ended well, and the models of the versions with their aliases. Nothing is RUNNING."""
    store = MlflowClient(f"sqlite:///{database}")
    runs = store.search_runs([experiment.experiment_id for experiment in store.search_experiments()])
    assert not [run.info.run_name for run in runs if run.info.status == "RUNNING"]
    (model,) = (model for model in store.search_registered_models() if not model.name.startswith(lease.NAME))
    found = {version.version: (version.tags["model"], version.tags["dvc.md5"]) for version in store.search_model_versions()}
    return {
        "runs": Counter(run.info.run_name for run in runs if run.info.status == "FINISHED" and run.data.tags["stage"] != "repro"),
        "versions": sorted(found.values()),
        "aliases": {alias: found[int(version)] for alias, version in model.aliases.items()},
    }


@dataclass(frozen=True)
class Whole:
    """What an undisturbed run makes and leaves in MLflow; the seconds that each stage took of it, and the seconds in all."""

    made: dict[str, str]
    remembered: dict[str, Any]
    taken: dict[str, float]
    seconds: float


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    checkout, began = Checkout(tmp_path_factory.mktemp("whole")), time.monotonic()
    process, starts = checkout.start(), {}
    while process.poll() is None:
        for stage in checkout.begun(0) if checkout.said.exists() else ():
            starts.setdefault(stage, time.monotonic())
        time.sleep(0.05)
    assert process.returncode == 0, checkout.said.read_text(encoding="utf-8")[-3000:]
    ends = [*list(starts.values())[1:], time.monotonic()]
    taken = {stage: end - start for (stage, start), end in zip(starts.items(), ends, strict=True)}
    checkout.deliver()
    return Whole(checkout.made(), remembered(checkout.place / "mlflow.db"), taken, time.monotonic() - began)


def test_a_run_killed_at_random_moments_ends_as_one_left_alone(whole, tmp_path, capsys):
    taken = whole.taken
    draw, began, hits, victims, rounds = random.Random(SEED), time.monotonic(), Counter[str](), Counter[str](), 0
    quota = -(-RUN // len(taken))
    while hits.total() < RUN:
        checkout, mine = Checkout(tmp_path / f"round-{rounds}"), Counter[str]()
        rounds += 1
        while True:
            bounded(began, RUN)
            after = checkout.said.stat().st_size if checkout.said.exists() else 0
            process = checkout.start()
            full = {stage for stage in taken if mine[stage] >= quota}
            stage = until_begun(checkout, process, after, full) if hits.total() < RUN else None
            if stage is None:
                process.wait(PATIENCE * len(taken))
                break
            members = None
            if stage in RESUMING and stage not in checkout.resumed():  # as soon as there is a checkpoint: its use has to be seen
                members = at_checkpoint(checkout, process, stage, after)
            else:
                time.sleep(draw.uniform(0, taken[stage]))
            if process.poll() is None:
                victims[kill(process, draw, members or family(process))] += 1
                hits[(checkout.begun(after) or [stage])[-1]] += 1
                mine[stage] += 1
        said = checkout.said.read_text(encoding="utf-8")
        assert process.returncode == 0, said[-3000:]
        assert checkout.made() == whole.made
        assert "To mend it" not in said
        checkout.deliver()
        left = remembered(checkout.place / "mlflow.db")
        left["runs"] = Counter(set(left["runs"]))  # a stage that is killed after its last word ends well twice
        assert left == whole.remembered
        assert RUN < len(taken) or rounds > 1 or checkout.resumed() == set(RESUMING)
    with capsys.disabled():
        seconds = time.monotonic() - began
        print(f"\nseed {SEED}: {hits.total()} SIGKILLs in {rounds} rounds, {seconds:.0f} s; of {dict(victims)}; in {dict(hits)}")


@contextmanager
def mlflow(place: Path, port: int) -> Iterator[None]:
    """A server on the loopback address that has begun to answer, killed outright at the end of the block."""
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", f"sqlite:///{place}/server.db"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")} | environment.SILENT | environment.SAFE
    with (place / "server.log").open("ab") as log:
        command = [sys.executable, "-m", "mlflow", "server", *where, "--artifacts-destination", str(place / "files")]
        process = subprocess.Popen(command, cwd=place, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: answers(port), 120)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        until(lambda: not answers(port), 30)  # its child is gone as well


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def killed_servers(checkout: Checkout, port: int, draw: random.Random, taken: dict[str, float], most: int) -> Counter[str]:
    """Run to the end; a server is killed in each stage, several in `register`, `most` in all. The stages in which that was."""
    process, after, mine, hits = checkout.start(), 0, Counter[str](), Counter[str]()
    for _ in range(3 * len(taken)):
        full = {stage for stage in taken if mine[stage] >= (4 if stage == "register" else 1)}
        with mlflow(checkout.place.parent, port):
            if process.poll():  # register has to reach the server: it says so and is asked again
                after, process = checkout.said.stat().st_size, checkout.start()
            if hits.total() < most and (stage := until_begun(checkout, process, after, full)):
                mine[stage] += 1
                time.sleep(draw.uniform(0, taken[stage]))
                if process.poll() is None:
                    hits[checkout.begun(after)[-1]] += 1
            elif process.wait(PATIENCE * len(taken)) == 0:
                checkout.deliver()
                return hits
    pytest.fail(checkout.said.read_text(encoding="utf-8")[-3000:])


def test_a_run_whose_mlflow_server_is_killed_ends_as_one_left_alone(whole, tmp_path, capsys):
    draw, began, hits, rounds = random.Random(SEED), time.monotonic(), Counter[str](), 0
    while hits.total() < SERVER:
        bounded(began, SERVER)
        place, port, rounds = tmp_path / f"round-{rounds}", server.free_port(), rounds + 1
        place.mkdir()
        checkout = Checkout(place / "run", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
        hits += killed_servers(checkout, port, draw, whole.taken, SERVER - hits.total())
        assert checkout.made() == whole.made
        assert remembered(place / "server.db") == whole.remembered
    with capsys.disabled():
        seconds = time.monotonic() - began
        print(f"\nseed {SEED}: MLflow's server killed {hits.total()} times in {rounds} runs, {seconds:.0f} s; in {dict(hits)}")


def test_a_run_whose_worker_is_killed_ends_as_one_left_alone(whole, tmp_path, capsys):
    draw, began, killed, runs = random.Random(SEED), time.monotonic(), 0, 0
    checkout = Checkout(tmp_path / "run")
    here = Served(tmp_path / "prefect", checkout.place, extra={name: checkout.env[name] for name in ("PYTHONPATH", "CUDA_VISIBLE_DEVICES")})
    try:
        here.start("server")
        here.start("serve")
        until(lambda: here.call("deployments/filter", {}), 60)
        while killed < WORKER:
            for left in ("dvc.lock", ".dvc/cache", ".dvc/tmp"):  # of the run before, if that was done too soon
                shutil.rmtree(path) if (path := checkout.place / left).is_dir() else path.unlink(missing_ok=True)
            state, runs = partial(here.state, here.run(workers=2)), runs + 1
            while killed < WORKER:
                bounded(began, WORKER)
                until(lambda state=state: state() in ("Running", "Completed"), PATIENCE)
                if state() == "Completed":
                    break
                time.sleep(draw.uniform(0, whole.seconds / 4))
                if state() == "Running":
                    (worker := until(here.worker, 60)).kill()
                    psutil.wait_procs([worker], 30)
                    until(here.worker, 120)
                    killed += 1
            until(lambda state=state: state() == "Completed", PATIENCE * len(whole.taken))
            assert checkout.made() == whole.made
    finally:
        here.end()
    with capsys.disabled():
        said = (checkout.place / "serve.log").read_text(encoding="utf-8", errors="replace")
        seconds, resumed = time.monotonic() - began, len(RESUMED.findall(said))
        print(
            f"\nseed {SEED}: the worker killed {killed} times in {runs} runs, {seconds:.0f} s; {resumed} stages went on from a checkpoint"
        )
