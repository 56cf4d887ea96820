"""A real browser for the tests of pages: Chromium of the system (`apt install chromium`). BASIN_SHOTS names a folder for pictures."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@pytest.fixture
def page(tmp_path: Path) -> Iterator:
    """An empty page of playwright's, which keeps a picture of itself with `page.shot(name)`, or of a page that it opened."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this system: apt install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(60_000)
        shots = Path(os.environ.get("BASIN_SHOTS", tmp_path / "shots"))
        page.shot = lambda name, other=page: other.screenshot(path=shots / f"{name}.png")
        yield page
        browser.close()


def listen(on: Any) -> list[str]:
    """What a page complains of or asks the network for from now on."""
    told: list[str] = []
    on.on("console", lambda message: told.append(message.text))
    on.on("pageerror", lambda error: told.append(str(error)))
    on.on("request", lambda asked: told.append(asked.url) if not asked.url.startswith(("file:", "data:", "blob:")) else None)
    return told
