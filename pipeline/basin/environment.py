"""The one place that decides what MLflow, Prefect and DVC may send out and where they keep their things, and how memory is kept.

`apply()` sets environment variables that are not set yet, so whatever the user exports wins. Call it before mlflow or prefect is
imported (both read some of these at import) and before a child process is started (children inherit them).

    switch back on                          what is sent
    DO_NOT_TRACK=0                          Prefect's client: usage events (MLflow reads this one too)
    PREFECT_SERVER_ANALYTICS_ENABLED=true   Prefect's server: version and uptime
    MLFLOW_DISABLE_TELEMETRY=false          MLflow: which calls are used
    dvc config --local core.analytics true  DVC: which commands are used (unset DVC_NO_ANALYTICS as well)
"""

import ctypes
import io
import os
import sys
import warnings
from pathlib import Path

SILENT = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
}

SAFE = {
    # A version of the registry is code and tensors; one that was exchanged for a pickle is refused.
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # A client whose server is away would otherwise retry for four minutes a call.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    # The job runners of `mlflow server` serve GenAI evaluation only: seven processes that nobody here needs.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # Servers that we start answer this machine only. To let others in: an address, and PREFECT_SERVER_API_AUTH_STRING.
    "PREFECT_SERVER_API_HOST": "127.0.0.1",
    # Leases kept in memory are lost at a server restart, and their concurrency slots with them, for good.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # Seconds. Lets an automation tell a flow whose machine died from one that is only slow.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # Seconds. A first start creates its database: 11 s on a laptop, more on a busy one; Prefect gives up after 20.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
}


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's names for them (malloc.h)
LARGEST = 2**30, 2**25  # bytes: what is asked for, and what an older glibc allows
KEPT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")  # where the user has set it


def keep_memory() -> None:
    """Have glibc keep what is freed for what is asked for next.

    By itself it gives large blocks back to the system and gets them again page by page, each of them zeroed: of a training step on a CPU
    that is a third to a half of the time (docs/decisions/0017-training-pace.md).
    """
    mallopt = None if any(name in os.environ for name in KEPT) else getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt and mallopt(TRIM_THRESHOLD, 2**31 - 1):
        any(mallopt(MMAP_THRESHOLD, size) for size in LARGEST)


def apply(workspace: Path | str = ".") -> None:
    """Set what is not set, keep memory, and have letters that the terminal lacks written as escapes.

    Prefect keeps its database in the workspace unless it has a server or a home of its own.
    """
    keep_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    for name, value in (SILENT | SAFE).items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" not in os.environ:
        os.environ.setdefault("PREFECT_HOME", str(Path(workspace).resolve() / ".basin" / "prefect"))
        # Said at the import of prefect in a fresh workspace; whoever starts its server makes the folder.
        warnings.filterwarnings("ignore", "Failed to create the Prefect home directory")
