"""The site in a real browser, as a telephone and a screen show it, in both themes: nothing beyond the edge, no request, no complaint."""

import runpy
from pathlib import Path
from typing import Any

import pytest
from browser import listen, page  # noqa: F401
from pages import ROOT

pytestmark = pytest.mark.slow
SHOWN = (
    "index",
    "docs/report",
    "docs/recipes",
    "docs/methods/README",
    "docs/results/attacks",
    "api/basin",
    "api/basin/methods/attacks/apgd",
)
LIGHT = """() => [[document.body, 'backgroundColor'], [document.querySelector('main p'), 'color']].map(
    ([one, it]) => getComputedStyle(one)[it].match(/\\d+/g).slice(0, 3).reduce((all, part) => all + Number(part), 0))"""  # up to 765


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert runpy.run_path(str(ROOT / "docs/site.py"))["build"](folder := tmp_path_factory.mktemp("site") / "site") == []
    return folder


@pytest.mark.parametrize("width", [360, 1440])
def test_pages_fit_in_both_themes(site: Path, page: Any, width: int):  # noqa: F811
    told = listen(page)
    page.set_viewport_size({"width": width, "height": 900})
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        for name in SHOWN:
            page.goto((site / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") == width, name
            page.shot(f"site-{name.replace('/', '-')}-{width}-{theme}")
    background, text = page.evaluate(LIGHT)  # of the last: the reference, dark
    assert background < 120 and text > 600 and told == []
