"""The pins without which Prefect installs and then does not work: docs/decisions/0002-pins-that-make-prefect-work.md."""

import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from packaging.version import Version


@pytest.mark.parametrize(("package", "below"), [("fastapi", "0.151"), ("sqlalchemy", "2.1")])
def test_installed_below_the_version_that_breaks_prefect(package: str, below: str):
    assert Version(version(package)) < Version(below)


def filtered(server: str, what: str, query: dict) -> list[dict]:
    return httpx.post(f"{server}/{what}/filter", json=query).raise_for_status().json()


def wait_for_runs(server: str, deployment: str, states: list[str], seconds: float) -> list[dict]:
    query = {"flow_runs": {"deployment_id": {"any_": [deployment]}, "state": {"type": {"any_": states}}}}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if runs := filtered(server, "flow_runs", query):
            return runs
        time.sleep(0.5)
    return []


def test_the_scheduler_fills_a_schedule(prefect_server: str):
    """With SQLAlchemy 2.1 the server starts, shows the schedule as active, and never creates a run."""
    with httpx.Client(base_url=prefect_server) as client:
        flow = client.post("/flows/", json={"name": "scheduled"}).raise_for_status().json()["id"]
        schedule = {"schedule": {"interval": 60, "anchor_date": (datetime.now(UTC) + timedelta(seconds=1)).isoformat()}, "active": True}
        body = {"name": "every minute", "flow_id": flow, "entrypoint": "x.py:x", "path": ".", "schedules": [schedule]}
        deployment = client.post("/deployments/", json=body).raise_for_status().json()["id"]
    runs = wait_for_runs(prefect_server, deployment, ["SCHEDULED"], seconds=30)
    assert runs, "the server accepted a schedule and created no run from it"
    assert all(run["auto_scheduled"] for run in runs)


@pytest.mark.slow
def test_a_served_flow_runs_on_its_schedule(prefect_server: str, project: Callable[..., Path]):
    place = project("stages:\n  one:\n    cmd: echo 1 > out\n    outs: [out]\n")
    code = "from pipeline import environment; environment.apply(); from pipeline import flow; flow.serve('often', interval=10)"
    server = subprocess.Popen([sys.executable, "-c", code], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deployment = ""
        deadline = time.monotonic() + 60
        while not deployment and time.monotonic() < deadline:
            found = filtered(prefect_server, "deployments", {"deployments": {"name": {"any_": ["often"]}}})
            deployment = found[0]["id"] if found else ""
            time.sleep(0.5)
        runs = wait_for_runs(prefect_server, deployment, ["COMPLETED"], seconds=90)
    finally:
        server.terminate()
        said = server.communicate(timeout=60)[0]
    assert runs, said[-3000:]
    assert (place / "out").read_text() == "1\n"
