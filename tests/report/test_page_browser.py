"""The report in a real browser, as one reads it: sorted, filtered, compared, leafed through, taken away, printed; nothing leaves it."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from browser import listen, page  # noqa: F401
from PIL import Image
from synthetic_outcomes import RUN, SUITES, write_run

from basin.report import outcomes, table, writing

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
MODELS = [made.model for made in RUN]
LONG = [f"a class with a long name, number {i}" for i in range(10)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    write_run(root)
    for path in root.glob("outcomes/*/*/*/summary.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"classes": LONG}))
    writing.write(root / "outcomes", root / "history", MODELS, list(SUITES), root / "report")
    return root / "report/index.html"


@pytest.fixture
def seen(page: Any, report: Path) -> Iterator[Any]:  # noqa: F811
    """The report's page, opened; at the end it has complained of nothing and asked for nothing."""
    told = listen(page)
    page.goto(report.as_uri())
    page.locator("#duel .says").filter(has_text="points").wait_for()
    yield page
    assert told == []


def column(on: Any, number: int) -> list[str]:
    return [text.split("\n")[0] for text in on.locator(f"#results tbody tr:visible > :nth-child({number})").all_inner_texts()]


def saved(on: Any, button: Any) -> SimpleNamespace:
    with on.expect_download() as download:
        button.click()
    return SimpleNamespace(name=download.value.suggested_filename, content=Path(download.value.path()).read_bytes())


def test_the_table_is_sorted_by_any_column(seen: Any):
    ranked = column(seen, 1)
    assert [float(cell) for cell in column(seen, 2)] == sorted((float(cell) for cell in column(seen, 2)), reverse=True)
    head = seen.get_by_role("columnheader", name="clean").first
    for order in ("descending", "ascending"):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == order
        numbers = [float(cell) for cell in column(seen, 3)]
        assert numbers == sorted(numbers, reverse=order == "descending")
    seen.locator("#results thead button").first.press("Enter")  # by name, with the keyboard alone
    assert column(seen, 1) == sorted(ranked)
    seen.locator("#results thead button", has_text="masked").click()
    assert column(seen, 6)[-2:] == ["–", "–"], "what was not measured comes last"


def test_the_table_is_filtered_by_any_column(seen: Any):
    everything = column(seen, 1)
    by = seen.get_by_label("Filter by model")
    by.fill("SODEF")
    assert sorted(column(seen, 1)) == sorted(name for name in everything if "sodef" in name)
    assert seen.get_by_text("2 of 4 rows").is_visible()
    by.fill("")
    worst = [float(cell) for cell in column(seen, 2)]
    for asked, fits in ((">50", lambda v: v > 50), ("50", lambda v: v >= 50), ("<50", lambda v: v < 50), ("1-60", lambda v: 1 <= v <= 60)):
        seen.get_by_label("Filter by worst case").fill(asked)
        assert [float(cell) for cell in column(seen, 2)] == [value for value in worst if fits(value)]
    assert 0 < len(column(seen, 2)) < 4


def test_two_models_are_compared_image_by_image(seen: Any, report: Path):
    found = {model: {suite: outcomes.read(report.parents[1] / "outcomes", model, suite) for suite in SUITES} for model in MODELS}
    one, other = (table.held(found[model]) for model in ("head/sodef_natural", "backbone/natural"))
    seen.get_by_label("First").select_option("head/sodef_natural")
    seen.get_by_label("Second").select_option("backbone/natural")
    said = seen.locator("#duel .says").inner_text()
    assert said.startswith(f"head/sodef_natural − backbone/natural: +{100 * (one - other).mean():.1f} points [") and "200 images" in said
    seen.get_by_label("First").select_option("backbone/natural")
    seen.get_by_label("Second").select_option("head/sodef_natural")
    assert seen.locator("#duel .says").inner_text().startswith(f"backbone/natural − head/sodef_natural: −{100 * (one - other).mean():.1f}")
    alone = int(((other == 0) & (one == 1)).sum())
    assert seen.locator("#duel .strip i.second").count() == alone
    seen.get_by_role("button", name=f"second alone: {alone}").click()
    assert seen.locator("#album output").inner_text() == f"1 of {alone}"
    first = int(found["backbone/natural"]["quick"].image[(other == 0) & (one == 1)][0])
    assert f"image {first}" in seen.locator("#album .leaves figure").first.inner_text()
    assert "still" in seen.locator("#album .leaves figure", has_text="head/sodef_natural").inner_text()


def test_all_images_are_leafed_through_with_the_attack_that_broke_them(seen: Any, report: Path):
    last = outcomes.read(report.parents[1] / "outcomes", "adversarial/pgd", "standard")
    album = seen.locator("#album")
    assert album.locator("output").inner_text() == "1 of 200"
    album.get_by_role("slider").focus()
    seen.keyboard.press("End")
    assert album.locator("output").inner_text() == "200 of 200"
    seen.keyboard.press("ArrowLeft")
    assert album.locator("output").inner_text() == "199 of 200"
    album.get_by_label("Model").select_option("adversarial/pgd")
    album.get_by_label("Fate").select_option("broken by apgd_t")
    by_it = last.image[last.attack == "apgd_t"]
    assert album.locator("output").inner_text() == f"1 of {len(by_it)}"
    leaf = album.locator("figure", has_text="adversarial/pgd")
    assert "apgd_t" in leaf.inner_text() and leaf.locator("canvas").count() == 2
    clean, attacked = (drawn(seen, f"#album figure:nth-child({n}) canvas") for n in (1, 4))
    position = int((last.image == by_it[0]).nonzero()[0][0])
    for pixels, expected in zip((clean, attacked), last.points(position), strict=True):
        assert pixels == (255 * expected[0]).round().astype(int).ravel().tolist()


def drawn(on: Any, selector: str) -> list[int]:
    """The grey values of a canvas."""
    code = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 == 0)"
    return on.locator(selector).first.evaluate(code)


def test_a_table_is_taken_away_as_it_is_sorted_and_filtered(seen: Any):
    seen.get_by_label("Filter by model").fill("sodef")
    holder = seen.locator(".table", has=seen.locator("#results"))
    taken = {}
    for kind in ("CSV", "Markdown", "LaTeX"):
        holder.get_by_role("button", name=kind).click()
        file = saved(seen, seen.get_by_role("dialog").get_by_role("button", name="Save"))
        taken[kind] = (file.name, file.content.decode())
        seen.keyboard.press("Escape")
    assert [name for name, _ in taken.values()] == ["results.csv", "results.md", "results.tex"]
    rows = list(csv.reader(io.StringIO(taken["CSV"][1])))
    assert rows[0][:3] == ["model", "worst case", "clean"] and len(rows) == 3
    assert [row[0] for row in rows[1:]] == [name.removesuffix(" best") for name in column(seen, 1)]
    assert re.fullmatch(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", rows[1][1])
    assert all(re.fullmatch(r"\d+\.\d", cell) for row in rows[1:] for cell in row[2:7]), "numbers alone"
    assert taken["Markdown"][1].splitlines()[1].startswith("| --- | ---: |") and len(taken["Markdown"][1].splitlines()) == 4
    seen.locator(".table[data-file=pairs]").get_by_role("button", name="CSV").click()
    assert re.search(r"^head/sodef_robust,adversarial/pgd,\+.*,\"\[.*\]\",\d+,\d+$", seen.locator("#taken pre").inner_text(), re.M)
    seen.keyboard.press("Escape")
    assert r"head/sodef\_robust" in taken["LaTeX"][1] and taken["LaTeX"][1].count(r"\\") == 3 and r"\toprule" in taken["LaTeX"][1]


def test_a_figure_is_taken_away_as_svg_png_and_vega_lite(seen: Any):
    seen.emulate_media(color_scheme="dark")
    plot = seen.locator(".plot.radius")
    svg, png, spec = (saved(seen, plot.get_by_role("button", name=kind)) for kind in ("SVG", "PNG", "Vega-Lite"))
    assert (svg.name, png.name, spec.name) == ("radius.svg", "radius.png", "radius.vl.json")
    assert b"var(" not in svg.content and b"#0b63c4" in svg.content and b'xmlns="http://www.w3.org/2000/svg"' in svg.content
    picture = Image.open(io.BytesIO(png.content))
    assert picture.width > 1600 and picture.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
    assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    assert len(json.loads(spec.content)["data"]["values"]) == 28
    mark = plot.locator("[aria-label*='head/sodef_natural, ε 0.15']")
    mark.hover()
    assert seen.locator("#tip").inner_text() == mark.get_attribute("aria-label")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_it_fits_both_widths_in_both_themes(seen: Any, width: int, theme: str):
    seen.set_viewport_size({"width": width, "height": 900})
    seen.emulate_media(color_scheme=theme)
    assert seen.evaluate("document.documentElement.scrollWidth") == width
    box = seen.locator("#results tbody td.worst").first.bounding_box()
    assert box["x"] + box["width"] <= width, "the worst case is cut off"
    dark = seen.locator(".plot.radius text").first.evaluate("text => getComputedStyle(text).fill")
    assert (dark == "rgb(165, 175, 186)") == (theme == "dark")
    pills = (
        "pills => pills.filter(p => p.getBoundingClientRect().right > p.closest('td, figure').getBoundingClientRect().right + .5).length"
    )
    assert seen.locator(".gallery .tag, .leaves .tag").evaluate_all(pills) == 0
    seen.shot(f"report-{width}-{theme}")


def test_keys_reach_everything_in_order(seen: Any):
    reached = []
    for _ in range(40):
        seen.keyboard.press("Tab")
        reached.append(seen.evaluate("[document.activeElement.tagName, document.activeElement.textContent.trim()].join(' ')"))
    wanted = ["A Table", "BUTTON SVG", "BUTTON worst case", "INPUT", "BUTTON LaTeX", "SELECT"]
    at = [next(i for i, name in enumerate(reached) if name.startswith(one)) for one in wanted]
    assert at == sorted(at), reached


def test_it_prints_and_reads_without_a_script(report: Path, page: Any, tmp_path: Path):  # noqa: F811
    told = listen(page)
    page.goto(report.as_uri())
    page.emulate_media(media="print")
    for gone in ("#album", "#duel", ".tools", ".filters", "nav"):
        assert not page.locator(gone).first.is_visible(), gone
    assert page.locator(".plot svg").first.is_visible() and page.get_by_role("cell", name="apgd_t").first.is_visible()
    page.pdf(path=tmp_path / "report.pdf")
    context = page.context.browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(report.as_uri())
    assert plain.locator("#results tbody tr").count() == 4 and not plain.locator("#album").is_visible()
    assert plain.locator(".plot.radius svg").is_visible() and plain.locator(".gallery img").first.is_visible()
    assert told == []


def test_dvc_draws_the_same_figures_without_a_network(report: Path, page: Any, tmp_path: Path):  # noqa: F811
    for name in ("dvc.yaml", "params.yaml", ".dvc/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(report.parent, tmp_path / "report")
    config = tmp_path / ".dvc/config"
    config.write_text(config.read_text().replace("[core]", "[core]\n    no_scm = True"))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'pipeline'}", "DVC_NO_ANALYTICS": "1"}
    subprocess.run([sys.executable, "-m", "dvc", "plots", "show"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    told = listen(page)
    page.goto((tmp_path / "dvc_plots/index.html").as_uri())
    page.locator("canvas, svg.marks").nth(3).wait_for()
    assert page.locator(".vega-embed").count() == 4 and told == []
    page.shot("dvc-plots")
