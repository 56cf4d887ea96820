"""A Prefect server for the length of one command, where the user runs none.

Prefect starts a temporary server by itself, but one that outlives a killed flow and has no UI. This one is under a guard, answers this
machine only, keeps its database in PREFECT_HOME, and shows the flow in the browser while it runs.
"""

import atexit
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from pipeline.guard import Guards

PATIENCE = 120.0  # seconds for a first start, which creates the database


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(home: Path | str) -> str:
    """Start a server that keeps its things under `home` and ends with this process; the address of its API.

    Raises RuntimeError with the server's last words if it does not come up.
    """
    port, guards = free_port(), Guards()
    log = Path(home) / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # By environment, not by --port: the UI would go on calling the default port.
    env = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_API_HOST": "127.0.0.1", "PREFECT_SERVER_API_PORT": str(port)}
    env.pop("PREFECT_API_URL", None)
    with log.open("wb") as output:
        command = [sys.executable, "-m", "prefect", "server", "start"]
        process = guards.start(command, env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    # Not earlier: Prefect sends its last log lines and task states when the interpreter ends its threads, just before this.
    atexit.register(guards.end)
    url = f"http://127.0.0.1:{port}/api"
    _wait_until_healthy(url, process, log)
    return url


def _wait_until_healthy(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise RuntimeError(f"The Prefect server did not start; the end of {log}:\n{last}")
