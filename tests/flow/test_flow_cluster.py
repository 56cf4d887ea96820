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
from types import ModuleType

import psutil
import pytest
from conftest import PARAMS, ROOT
from ruamel.yaml import YAML
from test_flow import gone

from basin.errors import Mistake
from basin.flow import server

CLI = [sys.executable, "-c", "from basin.cli.app import main; main()"]
DVC = [sys.executable, "-P", "-m", "dvc"]
PATIENCE = 480  # seconds: this machine may have other work
# Notes, where it runs, that it runs; waits for the gate, if it is given one; writes OUT.
STAGE = """
import os, sys, time
name, out, *inputs = sys.argv[1:]
def note(what): print(name, what, os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid(), file=open(os.environ["NOTES"], "a"))
note("start")
while name in ("left", "right") and not os.path.exists(os.environ["GATE"]): time.sleep(0.1)
open(out, "w").write(name + "".join(open(path).read() for path in inputs))
note("end")
"""


GRAPH = """
stages:
  prepare:
    cmd: python stage.py prepare a
    deps: [stage.py]
    outs: [a]
  left:
    cmd: python stage.py left b a
    deps: [stage.py, a]
    outs: [b]
    meta: {gpu: 1}
  right:
    cmd: python stage.py right c a
    deps: [stage.py, a]
    outs: [c]
    meta: {gpu: 1}
  join:
    cmd: python stage.py join d b c
    deps: [b, c]
    outs: [d]
"""


PAIR = """
stages:
  both:
    cmd: python stage.py both e
    deps: [stage.py]
    outs: [e]
    meta: {gpu: 2}
"""
TWO = """
import os, socket, sys, time
rank, size, gpu = (os.environ.get(name, "-") for name in ("RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES"))
print("process", rank, "of", size, "on", gpu, os.getpid(), file=open(os.environ["NOTES"], "a"))
place = os.environ.get("MASTER_ADDR"), int(os.environ.get("MASTER_PORT", 0))
while rank == "1":
    try: socket.create_connection(place); sys.exit()
    except OSError: time.sleep(0.1)
if rank == "0": socket.create_server(place).accept()
open(sys.argv[2], "w").write("made")
"""


def git(place: Path, *words: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", "-C", str(place), *identity, *words], check=True, capture_output=True)


class Cluster:
    """A workspace `head`, nodes `one` and `two` with checkouts of their own, and `plain`, which knows nothing of them."""

    def __init__(self, home: Path):
        self.home, self.head = home, home / "head"
        self.sockets = Path(tempfile.mkdtemp(prefix="ray-"))  # whose paths must be short
        self.env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex(), "BASIN_TRACKING": "off"}
        self.env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.env |= {"RAY_USAGE_STATS_ENABLED": "0", "NOTES": str(self.notes("head")), "GATE": str(home / "gate")}
        self.nodes: dict[str, subprocess.Popen] = {}
        self.run: subprocess.Popen | None = None

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

    def flow(self, *words: str) -> None:
        command = [*CLI, "flow", "--on", "ray", *words]
        with (self.home / "flow.log").open("wb") as log:
            self.run = subprocess.Popen(command, cwd=self.head, env=self.env, stdout=log, stderr=subprocess.STDOUT)

    def said(self) -> str:
        return (self.home / "flow.log").read_text()

    def until_it_runs(self, *nodes: str) -> None:
        """A stage, on each of the nodes."""
        until(lambda: all(self.ran(node) for node in nodes) or self.run.poll() is not None)
        assert self.run.poll() is None, self.said()

    def ends(self, code: int) -> None:
        assert self.run.wait(PATIENCE) == code, self.said()


def end(process: subprocess.Popen) -> set[int]:
    """SIGKILL to it and to all that it started."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        one.kill()
    process.wait()
    return {one.pid for one in family}


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.1)


@pytest.fixture
def cluster(prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    pytest.importorskip("prefect_ray", reason="the extra `ray` is not installed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = Cluster(tmp_path)
    yield made
    for process in (made.run, *reversed(made.nodes.values())):
        if process and process.poll() is None:
            end(process)
    shutil.rmtree(made.sockets, ignore_errors=True)


@pytest.fixture
def small(cluster: Cluster) -> Cluster:
    """prepare, then left and right, which want a GPU and wait for the gate, then join; all of it started."""
    return begun(cluster, GRAPH, STAGE)


def begun(cluster: Cluster, graph: str, stage: str) -> Cluster:
    """A project of this graph and this stage.py, and its nodes."""
    cluster.head.mkdir()
    git(cluster.head, "init", "-q")
    subprocess.run([*DVC, "init", "-q"], cwd=cluster.head, check=True)
    files = {"dvc.yaml": graph, "params.yaml": PARAMS, "stage.py": stage, ".gitignore": "/.basin/\n/a\n/b\n/c\n/d\n/e\n"}
    for name, text in files.items():
        (cluster.head / name).write_text(text)
    cluster.share()
    cluster.start()
    return cluster


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """basin.flow.cluster alone: nothing here talks to a server."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    from basin.flow import cluster

    return cluster


@pytest.mark.parametrize("on", ["there", "ray://", "ray://host", "ray://a b:1"])
def test_where_there_is_no_such_place(module: ModuleType, on: str):
    with pytest.raises(Mistake, match=rf"^on: no such place \(got '{on}'\). Give here, ray, or ray://HOST:PORT.$"):
        module.check(on)


def test_other_machines_need_a_remote_a_commit_and_ray(module: ModuleType, project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    def refused() -> str:
        with pytest.raises(Mistake) as mistake, module.connected("ray"):
            pass
        return str(mistake.value)

    place = project(GRAPH)
    assert refused().startswith("on: other machines need a DVC remote that all of them reach (got 'ray', and none).")
    config = place / ".dvc/config"
    config.write_text(config.read_text() + f"    remote = store\n['remote \"store\"']\n    url = {place}/store\n")
    assert refused().startswith("on: other machines need the commit of this workspace (got none: fatal: ")
    git(place, "init", "-q")
    git(place, "add", "-A")
    git(place, "commit", "-q", "-m", "a run")
    monkeypatch.setitem(sys.modules, "prefect_ray", None)
    assert refused().startswith("on: Ray is not installed here (got 'ray'; ")
    with module.connected("here") as nodes:
        assert nodes is None


@pytest.mark.slow
def test_a_flow_goes_over_both_nodes_and_ends_as_on_one_machine_though_one_is_killed(small: Cluster):
    small.flow("join")
    small.until_it_runs("one", "two")
    assert {*small.ran("one"), *small.ran("two")} == {"left start", "right start"}, "each node has one GPU, and so one stage"
    assert gone(end(small.nodes["two"])), "as a machine dies: all of it at once"
    (small.home / "gate").touch()
    small.ends(0)
    assert sorted(small.ran("one")) == ["left end", "left start", "right end", "right start"], (
        "the one that was lost, once more; the other once"
    )
    assert small.ran("head") == ["prepare start", "prepare end", "join start", "join end"]
    assert {line.split()[2] for line in small.notes("one").read_text().splitlines()} == {"0"}, "the GPU that Ray gave"
    subprocess.run([*DVC, "repro", "-q"], cwd=small.home / "plain", env=small.env | {"NOTES": os.devnull}, check=True)
    assert (small.head / "dvc.lock").read_text() == (small.home / "plain/dvc.lock").read_text()


@pytest.mark.slow
def test_a_stage_of_two_gpus_is_a_process_on_each_node_and_the_lock_is_that_of_one(cluster: Cluster):
    begun(cluster, PAIR, TWO).flow("both")
    cluster.ends(0)
    assert sorted(line.rsplit(" ", 1)[0] for node in ("one", "two") for line in cluster.notes(node).read_text().splitlines()) == [
        "process 0 of 2 on 0", "process 1 of 2 on 0",
    ]  # fmt: skip
    subprocess.run([*DVC, "repro", "-q"], cwd=cluster.home / "plain", env=cluster.env | {"NOTES": os.devnull}, check=True)
    assert (cluster.head / "dvc.lock").read_text() == (cluster.home / "plain/dvc.lock").read_text()


@pytest.mark.slow
def test_a_node_without_the_commit_ends_a_stage_of_two_and_is_told(cluster: Cluster):
    begun(cluster, PAIR, TWO)
    (cluster.head / "stage.py").write_text(TWO + "\n# changed")
    git(cluster.head, "commit", "-q", "-a", "-m", "changed")
    git(cluster.home / "one", "fetch", "-q")
    cluster.flow()
    cluster.ends(2)
    assert re.search(r"failed: both: exit code 2: \S+: \S+/two: the run's commit is not here \(got \w{12}\)", cluster.said())


@pytest.mark.slow
def test_a_stopped_flow_stops_its_stages_on_the_nodes(small: Cluster):
    small.flow("left", "right")
    small.until_it_runs("one", "two")
    stages = {int(small.notes(node).read_text().split()[-1]) for node in ("one", "two")}
    small.run.send_signal(signal.SIGTERM)
    assert gone(stages, patience=30)
    small.ends(130)


@pytest.mark.slow
def test_what_a_node_would_not_have_is_told(small: Cluster):
    (small.head / "stage.py").write_text(STAGE + "\n# changed")
    small.flow("prepare")
    small.ends(2)
    assert "error: on: other machines have what is committed (got changes in stage.py). Commit them, or run on here.\n" in small.said()
    git(small.head, "commit", "-q", "-a", "-m", "changed")
    small.flow("left")
    small.ends(2)
    assert re.search(r"failed: left: exit code 2: \S+: \S+: the run's commit is not here \(got \w{12}\). Bring it: git -C", small.said())


@pytest.mark.slow
def test_the_digits_run_splits_over_both_nodes_and_ends_with_the_digests_of_one_machine(cluster: Cluster):
    shortened_digits(cluster)
    subprocess.run([*DVC, "repro", "-q"], cwd=cluster.home / "plain", env=cluster.env, check=True)
    cluster.start()
    cluster.flow("--workers", "4")
    cluster.ends(0)
    where = {node: set(re.findall(rf"'(\S+) on \S+' - On .* in {cluster.home}/{node}/", cluster.said())) for node in ("one", "two")}
    assert all(where.values()), cluster.said()
    for model in ("backbone/natural", "head/linear"):
        assert f"attack/{model}/short: shared by 2 processes" in cluster.said()
    assert (cluster.head / "dvc.lock").read_text() == (cluster.home / "plain/dvc.lock").read_text()


@pytest.mark.slow
def test_an_attack_on_two_slots_ends_with_the_digests_of_one_process(cluster: Cluster):
    shortened_digits(cluster)
    subprocess.run([*DVC, "repro", "-q", "attack"], cwd=cluster.home / "plain", env=cluster.env, check=True)
    command = [*CLI, "flow", "attack"]
    env = cluster.env | {"CUDA_VISIBLE_DEVICES": "0,1"}
    done = subprocess.run(command, cwd=cluster.home / "two", env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.stdout.count("shared by 2 processes") == 2, done.stdout
    assert (cluster.home / "two/dvc.lock").read_text() == (cluster.home / "plain/dvc.lock").read_text()


def shortened_digits(cluster: Cluster) -> None:
    """This repository's graph on the digits, with little of everything, and its attacks on two GPUs each."""
    git(cluster.home, "clone", "-q", str(ROOT), "head")
    graph = cluster.head / "dvc.yaml"
    before, attack, after = graph.read_text().partition("  attack:\n")
    graph.write_text(before + attack + after.replace("meta: {gpu: 1}", "meta: {gpu: 2}", 1))
    params = YAML(typ="safe").load(cluster.head / "params.yaml")
    params["backbone"]["natural"]["schedule"]["epochs"] = params["adversarial"]["pgd"]["schedule"]["epochs"] = 2
    params["head"] = {"linear": {"from": "backbone/natural", "head": {"kind": "linear"}, "training": {"kind": "natural"}}}
    params["head"]["linear"]["schedule"] = {"classifier": {"epochs": 2, "batch": 128, "optimiser": "adam", "rate": 0.01}}
    params["suites"] = {"short": {"attacks": {"fgsm": {"kind": "fgsm"}}}}
    params["attack"] |= {"models": ["backbone/natural", "head/linear"], "suites": ["short"], "images": 50, "batch": 10}
    YAML().dump(params, cluster.head / "params.yaml")
    cluster.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{cluster.home}/mlflow.db"
    (cluster.head / "dvc.lock").unlink(missing_ok=True)
    cluster.share()
