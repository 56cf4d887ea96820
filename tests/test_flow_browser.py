"""Prefect's pages in a real browser: a form filled in, tasks watched, an artifact opened, a schedule paused, a run cancelled, one more.

Needs a Chromium of the system (`apt install chromium`) and says so where there is none. BASIN_SHOTS names a folder for the screenshots.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_flow import FORK
from test_flow_serving import Served, served  # noqa: F401

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@pytest.fixture
def page(tmp_path: Path) -> Iterator:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this system: apt install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(60_000)
        shots = Path(os.environ.get("BASIN_SHOTS", tmp_path / "shots"))
        page.shot = lambda name: page.screenshot(path=shots / f"{name}.png")
        yield page
        browser.close()


def test_a_person_at_the_pages(served, page):  # noqa: F811
    here: Served = served(FORK.replace(" b 1 a", " b 12 a").replace(" c 1 a", " c 12 a"), {"interval": 3600, "active": True})
    root, deployment = here.url.removesuffix("/api"), here.deployment()["id"]

    page.goto(f"{root}/deployments/deployment/{deployment}/run")
    page.wait_for_timeout(5000)
    page.shot("form")
    print(page.locator("body").inner_text()[:3000])
    words = "e => [e.tagName, e.type, e.name, e.value, e.innerText, e.getAttribute('aria-label'), e.className.slice(0, 60)].join('|')"
    print(page.evaluate(f"[...document.querySelectorAll('input,button,textarea')].map({words}).join('\\n')"))
