"""One flow over two nodes of a real Ray cluster: checkouts, caches and processes of their own, a folder as DVC's remote."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import PARAMS, ROOT
from test_flow import gone

from pipeline import server

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytest.importorskip("prefect_ray", reason="the extra `ray` is not installed")
pytestmark = pytest.mark.slow

CLI = [sys.executable, "-c", "from pipeline.cli import main; main()"]
DVC = [sys.executable, "-P", "-m", "dvc"]
PATIENCE = 240  # seconds: this machine may have other work
# Notes, where it runs, what runs when, and writes OUT.
STAGE = """
import os, sys, time
name, out, seconds, *inputs = sys.argv[1:]
def note(what): print(name, what, os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid(), file=open(os.environ["NOTES"], "a"))
note("start")
time.sleep(float(seconds))
open(out, "w").write(name + "".join(open(path).read() for path in inputs))
note("end")
"""


def graph(seconds: float) -> str:
    stages = {"prepare": {"cmd": "python stage.py prepare a 0", "deps": ["stage.py"], "outs": ["a"]}}
    for name, out in {"left": "b", "right": "c"}.items():
        cmd = f"python stage.py {name} {out} {seconds} a"
        stages[name] = {"cmd": cmd, "deps": ["a", "stage.py"], "outs": [out], "meta": {"gpu": 1}}
    stages["join"] = {"cmd": "python stage.py join d 0 b c", "deps": ["b", "c"], "outs": ["d"]}
    return yaml.safe_dump({"stages": stages}, sort_keys=False)


def git(place: Path, *words: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", "-C", str(place), *identity, *words], check=True, capture_output=True)


class Cluster:
    """A workspace `head`, nodes `one` and `two` with checkouts of their own, and `plain`, which knows nothing of them."""

    def __init__(self, home: Path):
        self.home, self.head = home, home / "head"
        self.sockets = Path(tempfile.mkdtemp(prefix="ray-"))  # whose paths must be short
        self.env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex(), "BASIN_TRACKING": "off"}
        self.env |= {"RAY_USAGE_STATS_ENABLED": "0", "NOTES": str(self.notes("head"))}
        self.nodes: dict[str, subprocess.Popen] = {}

    def notes(self, node: str) -> Path:
        return self.home / f"{node}.notes"

    def ran(self, node: str) -> list[str]:
        path = self.notes(node)
        return [" ".join(line.split()[:2]) for line in path.read_text().splitlines()] if path.exists() else []

    def share(self) -> None:
        """The remote, and what is in the workspace, in a commit that both checkouts have."""
        remote = f"['remote \"store\"']\n    url = {self.home}/store\n"
        (self.head / ".dvc/config").write_text(f"[core]\n    analytics = false\n    remote = store\n{remote}")
        git(self.head, "add", "-A")
        git(self.head, "commit", "-q", "-m", "a run")
        for place in ("one", "two", "plain"):
            git(self.home, "clone", "-q", "head", place)

    def start(self) -> None:
        address = f"127.0.0.1:{server.free_port()}"
        self.env["RAY_ADDRESS"] = address
        port, sockets = address.partition(":")[2], str(self.sockets)
        self._node("one", "--head", "--port", port, "--include-dashboard", "false", "--temp-dir", sockets)
        self._node("two", "--address", address)

    def _node(self, name: str, *options: str) -> None:
        env = self.env | {"BASIN_CHECKOUT": str(self.home / name), "NOTES": str(self.notes(name))}
        command = [str(Path(sys.executable).with_name("ray")), "start", "--num-cpus", "1", "--num-gpus", "1", "--block", *options]
        said = self.home / f"{name}.log"
        with said.open("wb") as log:
            process = subprocess.Popen(command, cwd=self.home, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self.nodes[name] = process
        until(lambda: process.poll() is not None or "Ray runtime started" in said.read_text())
        assert process.poll() is None, said.read_text()

    def kill(self, name: str) -> set[int]:
        """As a machine dies: all of it at once."""
        processes = family(self.nodes[name].pid)
        for process in processes:
            process.kill()
        self.nodes[name].wait()
        return {process.pid for process in processes}

    def flow(self, *words: str) -> subprocess.Popen:
        command = [*CLI, "flow", "--on", "ray", *words]
        return subprocess.Popen(command, cwd=self.head, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def family(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)] if psutil.pid_exists(pid) else []


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.1)


@pytest.fixture
def cluster(prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = Cluster(tmp_path)
    yield made
    for name in reversed(made.nodes):
        made.kill(name)
    shutil.rmtree(made.sockets, ignore_errors=True)


@pytest.fixture
def small(cluster: Cluster) -> Callable[[float], Cluster]:
    """`small(seconds)`: prepare, then left and right, which want a GPU for so long, then join; all of it started."""

    def make(seconds: float) -> Cluster:
        cluster.head.mkdir()
        git(cluster.head, "init", "-q")
        subprocess.run([*DVC, "init", "-q"], cwd=cluster.head, check=True)
        files = {"dvc.yaml": graph(seconds), "params.yaml": PARAMS, "stage.py": STAGE, ".gitignore": "/.basin/\n/a\n/b\n/c\n/d\n"}
        for name, text in files.items():
            (cluster.head / name).write_text(text)
        cluster.share()
        cluster.start()
        return cluster

    return make


def test_a_flow_goes_over_both_nodes_and_ends_as_on_one_machine_though_one_is_killed(small: Callable[[float], Cluster]):
    cluster = small(8)
    subprocess.run([*DVC, "repro", "-q"], cwd=cluster.home / "plain", env=cluster.env | {"NOTES": os.devnull}, check=True)
    run = cluster.flow()
    until(lambda: all(len(cluster.ran(node)) == 1 for node in ("one", "two")) or run.poll() is not None)
    assert run.poll() is None, run.communicate()[0]
    assert {*cluster.ran("one"), *cluster.ran("two")} == {"left start", "right start"}, "each node has one GPU, and so one stage"
    assert gone(cluster.kill("two"))
    said = run.communicate(timeout=PATIENCE)[0]
    assert run.returncode == 0, said
    assert (cluster.head / "dvc.lock").read_text() == (cluster.home / "plain/dvc.lock").read_text()
    assert sorted(cluster.ran("one")) == ["left end", "left start", "right end", "right start"]
    assert cluster.ran("head") == ["prepare start", "prepare end", "join start", "join end"]
    assert {line.split()[2] for line in cluster.notes("one").read_text().splitlines()} == {"0"}

    # What a node made, another workspace restores; nothing runs twice.
    subprocess.run([*DVC, "repro", "-q", "--pull"], cwd=cluster.home / "two", env=cluster.env | {"NOTES": os.devnull}, check=True)
    assert cluster.ran("two")[1:] == []


def test_a_stopped_flow_stops_its_stages_on_the_nodes(small: Callable[[float], Cluster]):
    cluster = small(60)
    run = cluster.flow("left")
    until(lambda: bool(cluster.ran("one") or cluster.ran("two")) or run.poll() is not None)
    assert run.poll() is None, run.communicate()[0]
    stage = next(int(path.read_text().split()[-1]) for path in (cluster.notes("one"), cluster.notes("two")) if path.exists())
    run.send_signal(signal.SIGTERM)
    assert gone({stage}, patience=20)
    said = run.communicate(timeout=60)[0]
    assert run.returncode == 130, said


def test_what_a_node_would_not_have_is_told_before_anything_runs(small: Callable[[float], Cluster]):
    cluster = small(0)
    (cluster.head / "stage.py").write_text(STAGE + "\n# changed")
    run = cluster.flow("prepare")
    said = run.communicate(timeout=PATIENCE)[0]
    assert "error: on: other machines have what is committed (got changes in stage.py). Commit them, or run on here.\n" in said
    assert run.returncode == 2
    git(cluster.head, "commit", "-q", "-a", "-m", "changed")
    run = cluster.flow("left")
    said = run.communicate(timeout=PATIENCE)[0]
    assert "the run's commit is not here" in said.splitlines()[-2]
    assert run.returncode == 2


def test_the_digits_run_splits_over_both_nodes_and_ends_with_the_digests_of_one_machine(cluster: Cluster):
    git(cluster.home, "clone", "-q", str(ROOT), "head")
    params = yaml.safe_load((cluster.head / "params.yaml").read_text())
    params["backbone"]["natural"]["schedule"]["epochs"] = params["adversarial"]["pgd"]["schedule"]["epochs"] = 2
    params["head"] = {"linear": {"from": "backbone/natural", "head": {"kind": "linear"}, "training": {"kind": "natural"}}}
    params["head"]["linear"]["schedule"] = {"classifier": {"epochs": 2, "batch": 128, "optimiser": "adam", "rate": 0.01}}
    params["suites"] = {"quick": {"attacks": {"fgsm": {"kind": "fgsm"}}}}
    params["attack"] |= {"models": ["backbone/natural", "adversarial/pgd", "head/linear"], "suites": ["quick"], "images": 50}
    (cluster.head / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    cluster.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{cluster.home}/mlflow.db"
    (cluster.head / "dvc.lock").unlink(missing_ok=True)
    cluster.share()
    subprocess.run([*DVC, "repro", "-q"], cwd=cluster.home / "plain", env=cluster.env, check=True)
    cluster.start()
    run = cluster.flow("--workers", "4")
    said = run.communicate(timeout=600)[0]
    assert run.returncode == 0, said
    where = {node: set(re.findall(rf"'(\S+) on \S+' - On .* in {cluster.home}/{node}/", said)) for node in ("one", "two")}
    print(where)
    assert all(where.values()), said
    assert (cluster.head / "dvc.lock").read_text() == (cluster.home / "plain/dvc.lock").read_text()
