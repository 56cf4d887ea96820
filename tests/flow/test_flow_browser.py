"""Prefect's pages in a real browser: a form filled in, tasks watched, an artifact opened, a schedule paused, a run cancelled, one more."""

from collections.abc import Callable
from typing import Any

import pytest
from browser import page  # noqa: F401
from test_flow import FORK, gone, notes
from test_flow_serving import Served, served, until  # noqa: F401

pytestmark = pytest.mark.slow


def test_a_person_at_the_pages(served: Callable[..., Served], page: Any):  # noqa: F811
    here = served(FORK.replace(" b 1 a", " b 25 a").replace(" c 1 a", " c 25 a"), {"interval": 3600, "active": True})
    root, deployment = here.url.removesuffix("/api"), here.deployment()["id"]

    # The form: a wrong value is refused, a changed one starts a run.
    page.goto(f"{root}/deployments/deployment/{deployment}/run")
    page.locator("input[type=number]").fill("0")
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("0 is less than the minimum of 1").first.wait_for()
    page.shot("1-refused")
    page.locator("input[type=number]").fill("3")
    page.get_by_text("list", exact=True).nth(1).click()
    page.get_by_role("button", name="Add item").click()
    page.locator("textarea").first.fill("threat.eps=0.1")
    page.shot("2-changed")
    page.get_by_role("button", name="Submit").click()
    of_this = {"flow_runs": {"deployment_id": {"any_": [deployment]}}}
    run = until(lambda: [one for one in here.call("flow_runs/filter", of_this) if not one["auto_scheduled"]], 60)[0]
    assert (run["parameters"]["workers"], run["parameters"]["changes"]) == (3, ["threat.eps=0.1"])

    # Two tasks at once, with the parameter as it was changed.
    until(lambda: {"left", "right"} <= {name for _, name, what, *_ in notes(here.place)}, 180)
    page.goto(f"{root}/runs/flow-run/{run['id']}?tab=Task+Runs")
    page.get_by_text("left").first.wait_for()
    page.get_by_text("threat: linf 0.1", exact=True).first.wait_for()
    assert page.get_by_text("Running").count() >= 3, "the run and two tasks"
    page.shot("3-two-at-once")

    # Cancelled from the menu: the stages end.
    stages = {int(line[-1]) for line in notes(here.place)}
    page.locator(".flow-run-menu button").first.click()
    page.get_by_text("Cancel", exact=True).last.click()
    page.get_by_role("button", name="Confirm").click()
    assert gone(stages, patience=30)
    until(lambda: here.state(run["id"]) == "Cancelled", 90)
    page.reload()
    page.get_by_text("Cancelled").first.wait_for()
    page.shot("4-cancelled")

    # Started again by its Retry button: it ends right.
    page.goto(f"{root}/runs/flow-run/{run['id']}")
    page.get_by_role("button", name="Retry").first.click()
    page.get_by_role("button", name="Retry").last.click()
    until(lambda: here.state(run["id"]) == "Completed", 180)
    assert sorted(name for _, name, what, *_ in notes(here.place) if what == "end") == ["join", "left", "prepare", "right"]

    page.goto(f"{root}/artifacts/key/stages")
    page.get_by_text("What became of each stage").first.wait_for()
    page.locator("a[href*='/artifacts/artifact/']").first.click()
    page.get_by_role("cell", name="Skipped").first.wait_for()
    page.shot("5-artifact")

    page.goto(f"{root}/deployments/deployment/{deployment}")
    page.locator(".deployment-schedule-card .p-toggle__control").click()
    until(lambda: [one["active"] for one in here.deployment()["schedules"]] == [False], 30)
    page.shot("6-paused")
