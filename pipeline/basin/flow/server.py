"""Servers for the length of one command: Prefect's where the user runs none, and both tools' pages for a look.

Prefect starts a temporary server by itself, but one that outlives a killed flow and has no UI. This one is under a guard, answers this
machine only, keeps its database in PREFECT_HOME, and shows the flow in the browser while it runs.
"""

import atexit
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from basin.errors import Mistake
from basin.repro.guard import Guards, Stopped
from basin.tracking import journal

PATIENCE = 120.0  # seconds for a first start, which creates the database


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(home: Path | str, port: int | None = None) -> str:
    """Start a Prefect server that keeps its things under `home` and ends with this process, and another when it dies; its API's address.

    Raises Mistake where the port is taken, RuntimeError with the server's last words if it does not come up.
    """
    if port:
        _check_free(port)
    port, guards = port or free_port(), Guards()
    log = Path(home) / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # By environment, not by --port: the UI would go on calling the default port.
    env = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_API_HOST": "127.0.0.1", "PREFECT_SERVER_API_PORT": str(port)}
    env.pop("PREFECT_API_URL", None)
    log.unlink(missing_ok=True)

    def run() -> subprocess.Popen:
        command = [sys.executable, "-m", "prefect", "server", "start"]
        with log.open("ab") as output:
            return guards.start(command, env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)

    process = run()
    # Not earlier: Prefect sends its last log lines and task states when the interpreter ends its threads, just before this.
    atexit.register(guards.end)
    url = f"http://127.0.0.1:{port}/api"
    _wait_until_healthy(url, process, log)
    threading.Thread(target=_restart, args=(process, run), daemon=True).start()
    return url


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise Mistake(f"port {port}: something listens on it already (got 127.0.0.1:{port}). Give another: see --help.")


def _restart(process: subprocess.Popen, run: Callable[[], subprocess.Popen]) -> None:
    """Another server whenever one dies, until the guards end it."""
    with suppress(Stopped):
        while True:
            process.wait()
            time.sleep(1.0)
            process = run()


def show(mlflow_port: int, prefect_port: int, experiment: str = "") -> None:
    """MLflow's and Prefect's pages on the loopback address, until interrupted; MLflow's at an experiment, where one is named.

    Raises Mistake where a port is taken.
    """
    if mlflow_port == prefect_port:
        raise Mistake(f"--prefect-port: is MLflow's too (got {prefect_port}). Give each its own.")
    for port in (mlflow_port, prefect_port):
        _check_free(port)
    from basin.tracking import client

    guards = Guards()
    place = ["--host", "127.0.0.1", "--port", str(mlflow_port), "--workers", "1"]
    database = {"MLFLOW_BACKEND_STORE_URI": journal.uri()}  # no argument: it may hold a password, and everybody sees those
    pages = guards.start([sys.executable, "-m", "mlflow", "server", *place], {**os.environ, **database})
    try:
        prefect = start(os.environ.get("PREFECT_HOME", ".basin/prefect"), prefect_port)
        mlflow = client.page(f"http://127.0.0.1:{mlflow_port}", experiment) if experiment else f"http://127.0.0.1:{mlflow_port}"
        sys.stderr.write(f"MLflow: {mlflow}   Prefect: {prefect.removesuffix('/api')}   Ctrl-C ends both.\n")
        pages.wait()
    except KeyboardInterrupt:
        return
    finally:
        guards.end()


def _wait_until_healthy(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    raise RuntimeError(f"The Prefect server did not start; the end of {log}:\n{last}")
