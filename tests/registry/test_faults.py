"""MLflow that accepts and never answers, that answers 500, that dies between a version and its alias: one sentence, soon, nothing lost."""

import http.server
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from test_registry import NAME, workspace  # noqa: F401
from test_servers import ONE_MODEL, ROOT, SILENT, answers, kill, process

from basin.flow import server

pytestmark = pytest.mark.slow
REGISTER = """
from test_registry import digests
from basin.config import params
from basin.errors import exit_on_mistake
from basin.registry import registration
with exit_on_mistake():
    registration.register_all(params.load(), digests())
"""
STAGE = """
from basin.tracking import journal
with journal.run("head/ode", {"epochs": 1}, {}, experiment="digits") as run:
    run.metrics({"loss": 0.5})
open("result", "w").write("kept")
"""


def run(code: str, folder: Path, uri: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "pipeline", ROOT / "tests", ROOT / "tests/registry")))
    env = SILENT | {"PYTHONPATH": paths, "MLFLOW_TRACKING_URI": uri}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False)


@contextmanager
def mute() -> Iterator[str]:
    """Accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


@contextmanager
def broken() -> Iterator[str]:
    """Answers 500 to everything."""

    class Broken(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_error(500)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_address[1]}"
        serving.shutdown()


@pytest.fixture
def folder(workspace, tmp_path) -> Path:  # noqa: F811
    shutil.copytree(workspace, place := tmp_path / "run")
    (place / "params.yaml").write_text(ONE_MODEL, encoding="utf-8")
    return place


@pytest.mark.parametrize(("fault", "seconds"), [(mute, 150), (broken, 100)])
def test_registration_says_one_sentence_within_bounded_time(folder, fault, seconds):
    with fault() as uri:
        began = time.monotonic()
        done = run(REGISTER, folder, uri)
        taken = time.monotonic() - began
    assert done.returncode == 75, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if not line.startswith("registry: ")]
    assert said.startswith(f"error: registry: MLflow at {uri} cannot be used (got ")
    assert said.endswith("Everything is computed and kept; when MLflow is back, run `dvc repro register`.")
    assert taken < seconds


@pytest.mark.parametrize("fault", [mute, broken])
def test_a_stage_keeps_its_result_and_the_outbox_delivers_later(tmp_path, fault):
    with fault() as uri:
        began = time.monotonic()
        done = run(STAGE, tmp_path, uri)
    assert done.returncode == 0 and time.monotonic() - began < 60
    assert (tmp_path / "result").read_text(encoding="utf-8") == "kept"
    assert done.stderr.count("does not take this run") == 1 and "Traceback" not in done.stderr
    local = run("import runpy; runpy.run_module('basin.tracking.mirror', run_name='__main__')", tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    assert local.returncode == 0, local.stderr
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as found:
        assert found.execute("SELECT name, status FROM runs").fetchall() == [("head/ode", "FINISHED")]
    assert not list(tmp_path.glob(".basin/runs/**/*.jsonl"))


def test_a_server_that_dies_between_a_version_and_its_alias(folder, tmp_path):
    port = server.free_port()
    uri, database = f"http://127.0.0.1:{port}", tmp_path / "server.db"
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", f"sqlite:///{database}"]
    command = [sys.executable, "-m", "mlflow", "server", *where, "--artifacts-destination", str(tmp_path / "files")]

    def rows(query: str) -> list[tuple]:
        with closing(sqlite3.connect(database, timeout=30)) as found:
            return found.execute(query).fetchall()

    answered: list[subprocess.CompletedProcess] = []
    with process(command, answers(f"{uri}/health"), tmp_path / "server.log", env=SILENT, cwd=tmp_path) as started:
        registering = threading.Thread(target=lambda: answered.append(run(REGISTER, folder, uri)))
        registering.start()
        deadline = time.monotonic() + 120
        while not rows("SELECT version FROM model_versions"):
            assert time.monotonic() < deadline and registering.is_alive()
            time.sleep(0.01)
        kill(started, signal.SIGKILL)
        assert rows("SELECT alias FROM registered_model_aliases") == []
    registering.join(200)
    (first,) = answered
    assert first.returncode == 75 and "cannot be used" in first.stderr and "Traceback" not in first.stderr, first.stderr
    with process(command, answers(f"{uri}/health"), tmp_path / "server.log", env=SILENT, cwd=tmp_path):
        again = run(REGISTER, folder, uri)
    assert again.returncode == 0, again.stderr
    assert rows("SELECT version FROM model_versions") == [(1,)]
    assert sorted(rows("SELECT name, alias, version FROM registered_model_aliases")) == [(NAME, "champion", 1), (NAME, "ode", 1)]
    assert rows("SELECT name FROM registered_models") == [(NAME,)], "the dead one's lock is gone"
