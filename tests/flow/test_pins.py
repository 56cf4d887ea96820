"""The pins without which Prefect installs and then does not work: docs/decisions/0002-pins-that-make-prefect-work.md.

That a schedule's run is also run to its end, a slow test sees: tests/flow/test_flow_serving.py.
"""

import time
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

import httpx
import pytest
from packaging.version import Version


@pytest.mark.parametrize(("package", "below"), [("fastapi", "0.151"), ("sqlalchemy", "2.1")])
def test_installed_below_the_version_that_breaks_prefect(package: str, below: str):
    assert Version(version(package)) < Version(below)


def post(server: str, path: str, body: dict) -> Any:
    """The server's answer; asked again where SQLite's database was locked for a moment, as Prefect's own client does."""
    for _ in range(20):
        answer = httpx.post(f"{server}/{path}", json=body, timeout=30)
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            break
        time.sleep(0.5)
    return answer.raise_for_status().json()


def wait_for_runs(server: str, deployment: str, states: list[str], seconds: float) -> list[dict]:
    query = {"flow_runs": {"deployment_id": {"any_": [deployment]}, "state": {"type": {"any_": states}}}}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if runs := post(server, "flow_runs/filter", query):
            return runs
        time.sleep(0.5)
    return []


@pytest.mark.slow
def test_the_scheduler_fills_a_schedule(prefect_server: str):
    """With SQLAlchemy 2.1 the server starts, shows the schedule as active, and never creates a run."""
    flow = post(prefect_server, "flows/", {"name": "scheduled"})["id"]
    schedule = {"schedule": {"interval": 60, "anchor_date": (datetime.now(UTC) + timedelta(seconds=1)).isoformat()}, "active": True}
    body = {"name": "every minute", "flow_id": flow, "entrypoint": "x.py:x", "path": ".", "schedules": [schedule]}
    deployment = post(prefect_server, "deployments/", body)["id"]
    runs = wait_for_runs(prefect_server, deployment, ["SCHEDULED"], seconds=30)
    assert runs, "the server accepted a schedule and created no run from it"
    assert all(run["auto_scheduled"] for run in runs)
