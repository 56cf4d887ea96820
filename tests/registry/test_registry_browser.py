"""MLflow's pages in a real browser: from the list of models to the champion, its numbers, its card with pictures, and its parents."""

import sys
from typing import Any

import pytest
from browser import page  # noqa: F401
from test_registry import NAME, enter, registered, registered_workspace, workspace  # noqa: F401
from test_servers import SILENT, answers, process

from basin.flow import server
from basin.tracking import client

pytestmark = pytest.mark.slow


@pytest.fixture
def pages(registered, tmp_path):  # noqa: F811
    """The address of MLflow's server on the registry of a run."""
    url = f"http://127.0.0.1:{(port := server.free_port())}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with process([*command, "--backend-store-uri", "sqlite:///mlflow.db"], answers(f"{url}/health"), tmp_path / "server.log", env=SILENT):
        yield url


def test_the_champion_in_four_clicks(pages: str, page: Any):  # noqa: F811
    clicks = []

    def click(on: Any, name: str) -> Any:
        """The page behind a link: the same one, or a tab of its own where MLflow opens one for it."""
        link = on.get_by_role("link", name=name, exact=True).first
        clicks.append(name)
        if link.get_attribute("target") != "_blank":
            link.click()
            return on
        with on.expect_popup() as opened:
            link.click()
        return opened.value

    page.goto(f"{pages}/#/models")
    page.get_by_role("button", name="Try it now").click()  # MLflow's greeting at the first visit of a browser
    model = click(page, NAME)
    model.get_by_text("that the promotion gate let through").wait_for()
    page.shot("1-model", model)
    champion = click(model, "version 2")
    champion.get_by_text("robust, worst case of all").wait_for()
    assert champion.get_by_role("cell", name="35.2% to 64.8%").first.is_visible()
    assert champion.get_by_text("champion", exact=True).first.is_visible() and champion.url.endswith(f"{NAME}/versions/2")
    picture = champion.locator("img[src*='examples.png']")
    picture.scroll_into_view_if_needed()
    champion.wait_for_function("picture => picture.complete && picture.naturalWidth > 100", arg=picture.element_handle())
    page.shot("2-champion", champion)
    parent = click(champion, "version 1")
    parent.get_by_text("backbone/natural: ").first.wait_for()
    assert parent.url.endswith(f"{NAME}/versions/1")
    page.shot("3-parent", parent)
    if parent is champion:
        champion.go_back()
    metrics = click(champion, "head-ode")
    metrics.get_by_text("worst_case").first.wait_for()
    page.shot("4-metrics", metrics)
    assert len(clicks) == 4


def test_an_experiment_opens_as_model_training(pages: str, page: Any):  # noqa: F811
    page.goto(client.page(pages, "digits"))
    page.get_by_role("link", name="head/ode", exact=True).first.wait_for()
    assert "/runs?workflowType=machine_learning" in page.url
    page.shot("5-runs")
