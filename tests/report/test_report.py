import csv
import hashlib
import io
import json
import re
import shutil
from base64 import b64decode, b64encode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from synthetic_outcomes import RUN, SUITES, Made, write_run

from basin.config.flags import MEANINGS
from basin.errors import Mistake
from basin.evaluation import classes, interval, outcomes
from basin.report import album, by_class, figures, pairs, pictures, stability, table, tidy, wording, writing
from basin.report.console import show
from basin.report.outcomes import read
from basin.threat.ball import ThreatModel

MODELS = [made.model for made in RUN]
HOSTILE = """<script src="https://evil.example/x.js">alert('"&')</script>"""
VOID = {"meta", "img", "wbr", "br", "link", "input"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in order; keeps what the tests ask about."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.numbers: dict[str, dict[str, float]] = {}
        self.row = self.column = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        self.row, self.column = found.get("data-model", self.row), found.get("data-column", self.column)
        if tag == "data":
            self.numbers.setdefault(self.row, {})[self.column] = float(found["value"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder with outcomes/ and history/ of four models; not to be changed."""
    root = tmp_path_factory.mktemp("run")
    write_run(root)
    return root


@pytest.fixture
def own(run, tmp_path) -> Path:
    """The same, to be damaged."""
    return shutil.copytree(run, tmp_path / "own")


def reported(root: Path, models=MODELS, suites=tuple(SUITES)) -> tuple[table.Table, Path]:
    out = root / "report"
    return writing.write(root / "outcomes", root / "history", list(models), list(suites), out), out


@pytest.fixture(scope="module")
def written(run) -> tuple[table.Table, Path]:
    return reported(run)


def everything(root: Path, models=MODELS) -> table.ByModel:
    return {model: {suite: read(root / "outcomes", model, suite) for suite in SUITES} for model in models}


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def mistake(root: Path, **keywords) -> str:
    with pytest.raises(Mistake) as caught:
        reported(root, **keywords)
    return str(caught.value)


# The numbers


def test_worst_case_is_below_every_suite_and_the_masked_attack(written):
    for row in written[0].metrics().values():
        low, high = interval.wilson(round(row["worst_case"] * row["n"]), int(row["n"]))
        assert row["worst_case"] <= min(row[name] for name in ("clean", *SUITES, "masked") if name in row)
        assert (row["interval_low"], row["interval_high"]) == (round(low, 6), round(high, 6))
        assert row["interval_low"] <= row["worst_case"] <= row["interval_high"]


def test_worst_case_is_joined_on_the_image_index(own):
    """Two suites that break different images: the worst case is the rest; the order of rows plays no part."""
    model = "backbone/natural"
    folders = [own / "outcomes" / model / suite for suite in SUITES]
    for part, folder in enumerate(folders):
        with (folder / "outcomes.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        for i, row in enumerate(rows):
            row["clean"], row["robust"] = row["label"], str(int(i % 4 != part))
        points = load_file(folder / "adversarial.safetensors")
        if part:
            rows, points = rows[::-1], {name: np.ascontiguousarray(images[::-1]) for name, images in points.items()}
        with (folder / "outcomes.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        save_file(points, folder / "adversarial.safetensors")
        edit(folder / "summary.json", clean=1.0, robust=0.75)
    numbers = writing.read(own / "outcomes", [model], list(SUITES)).metrics()[model]
    assert (numbers["quick"], numbers["standard"], numbers["worst_case"]) == (0.75, 0.75, 0.5)
    first, second = (read(own / "outcomes", model, suite) for suite in SUITES)
    assert all(np.array_equal(first.points(i)[0], second.points(i)[0]) for i in (0, 7, 199))


def test_twin_comes_from_the_run_else_from_the_summary(run):
    def twin(models):
        row = next(row for row in writing.read(run / "outcomes", models, list(SUITES)).rows if row.model == "head/sodef_natural")
        return row.twin.model, row.twin.share.value, row.twin.source

    run_table = writing.read(run / "outcomes", MODELS, list(SUITES)).metrics()
    assert twin(["backbone/natural", "head/sodef_natural"]) == ("backbone/natural", run_table["backbone/natural"]["worst_case"], "run")
    assert twin(["head/sodef_natural", "adversarial/pgd"]) == ("backbone/natural", 0.02, "transfer")


def test_metrics_hold_numbers_only_and_no_key_for_what_was_not_measured(written):
    metrics = json.loads((written[1] / "metrics.json").read_text())
    assert list(metrics) == MODELS and metrics == written[0].metrics()
    assert all(type(number) in (int, float) for row in metrics.values() for number in row.values())
    assert {"masked", "twin"} <= metrics["head/sodef_natural"].keys()
    assert not {"masked", "twin"} & metrics["backbone/natural"].keys()


def test_table_csv_says_what_metrics_say(written):
    with (written[1] / "table.csv").open(newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    for model, numbers in written[0].metrics().items():
        assert {name: float(rows[model][name]) for name in numbers} == numbers
    assert rows["head/sodef_robust"]["twin_model"] == "adversarial/pgd"
    assert rows["backbone/natural"]["masked"] == ""


def test_curves_and_history_are_tidy(written):
    curves, history = ([*csv.DictReader((written[1] / f"{name}.csv").open(newline=""))] for name in ("curves", "history"))
    assert list(curves[0]) == ["model", "attack", "eps", "robust", "interval_low", "interval_high", "threat"]
    assert {row["model"] for row in curves} == set(MODELS)
    assert list(history[0]) == ["model", "phase", "epoch", "step", "loss", "accuracy", "robust"]
    steps = [int(row["step"]) for row in history if row["model"] == "head/sodef_natural"]
    assert steps == list(range(1, 17))


# The page


def test_page_parses_and_its_table_holds_the_metrics(written):
    page = Page((written[1] / "index.html").read_text())
    shown = {"clean", *SUITES, "worst_case", "masked", "twin"}
    expected = {model: {name: value for name, value in row.items() if name in shown} for model, row in written[0].metrics().items()}
    assert {model: row for model, row in page.numbers.items() if model} == expected


def programs(page: Page) -> list[dict]:
    return [found for tag, found in page.tags if tag == "script" and found.get("type") != "application/json"]


def test_page_needs_no_network_and_is_accessible(written):
    text = (written[1] / "index.html").read_text()
    page = Page(text)
    loads = [found[name] for _, found in page.tags for name in ("src", "href", "srcset", "action", "data") if name in found]
    assert loads and all(link.startswith(("#", "data:image/png;base64,", "../outcomes/")) for link in loads)
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert "://" not in text and "@import" not in text and "url(" not in text
    assert all(found.get("alt") for tag, found in page.tags if tag == "img")
    assert all(found.get("scope") for tag, found in page.tags if tag == "th")
    assert all("aria-label" in found or "aria-hidden" in found for tag, found in page.tags if tag == "svg")
    anchors = {found["id"] for _, found in page.tags if "id" in found}
    assert all(link[1:] in anchors for link in loads if link.startswith("#"))
    assert all((written[1] / link).is_file() for link in loads if link.startswith("../"))


def test_the_page_allows_its_own_script_and_style_by_their_hash_and_no_other(written):
    text = (written[1] / "index.html").read_text()
    page, policy = Page(text), re.findall('Content-Security-Policy" content="([^"]*)"', text)[0]
    (script,), (style,) = re.findall(r"<script>(.*?)</script>", text, re.S), re.findall(r"<style>(.*?)</style>", text, re.S)
    for what, content in (("script", script), ("style", style)):
        digest = b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{what}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    assert not [found for _, found in page.tags if "style" in found or any(name.startswith("on") for name in found)]


def test_hostile_names_are_text(own):
    for path in own.glob("outcomes/*/*/*/summary.json"):
        edit(
            path,
            classes=[HOSTILE] * 10,
            data=HOSTILE,
            flags=[HOSTILE],
            attacks={HOSTILE: 0.5},
            curve={"attack": HOSTILE, "points": [[0.1, 0.5]]},
        )
    for path in own.glob("outcomes/*/*/*/stability.json"):
        edit_flow(path, flow=HOSTILE)
    for path in own.glob("history/*/*.csv"):
        path.write_text(f'phase,epoch,loss,accuracy\n"{HOSTILE.replace(chr(34), chr(34) * 2)}",1,0.5,0.9\n')
    text = (reported(own)[1] / "index.html").read_text()
    page = Page(text)
    assert len(programs(page)) == 1 and text.count("evil.example") > 20
    assert not [found for _, found in page.tags if "evil" in found.get("src", "")]


def test_same_inputs_give_the_same_bytes(run, own, written):
    again = reported(own)[1]
    names = {"index.html", "table.csv", "metrics.json", "curves.csv", "history.csv"}
    names |= {f"plots/{name}" for name in ("page.html", "glance.json", "radius.json", "loss.json", "accuracy.json")}
    assert {path.relative_to(again).as_posix() for path in again.rglob("*.*")} == names
    assert all((again / name).read_bytes() == (written[1] / name).read_bytes() for name in names)
    assert not any(str(run) in (again / name).read_text() for name in names)


@pytest.mark.parametrize("many", [1, 2, pytest.param(20, marks=pytest.mark.slow)])
def test_any_number_of_models_fits(tmp_path, many):
    made = [Made(f"head/variant_{i:02d}", 0.1 + 0.1 * i, source="backbone/elsewhere", masking=0.5 * (i % 2)) for i in range(many)]
    write_run(tmp_path, made, n=40)
    table, out = reported(tmp_path, [one.model for one in made])
    page = Page((out / "index.html").read_text())
    assert len(page.numbers) >= many == len(table.rows)
    svg = figures.figure("radius", tidy.points(everything(tmp_path, [one.model for one in made])), "", [one.model for one in made]).svg
    looks = re.findall(r'<path aria-label="head/variant_(\d+), [^>]*? d="([^"]*)" fill="([^"]*)"', svg)
    assert len({look[1:] for look in looks}) == len({look[0] for look in looks}) == many


def test_a_model_without_history_or_curve_is_said_not_hidden(own):
    (own / "history/head/sodef_natural.csv").unlink()
    for path in own.glob("outcomes/*/*/*/summary.json"):
        edit(path, curve=None, flags=[])
    text = (reported(own)[1] / "index.html").read_text()
    assert "No history was kept of head/sodef_natural." in text and "None was raised." in text
    assert 'id="radius"' not in text and "#radius" not in text


def test_report_reads_what_the_evaluation_writes(tmp_path):
    """The two sides of the contract, without a made-up folder between them."""
    images, labels = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    clean = torch.tensor([0, 1, 2, 3, 4, 0])
    attack = ["", "", "", "pgd", "pgd", "clean"]
    points = (images + 0.1 * torch.tensor([0, 0, 1, 1, 1, 0]).view(6, 1, 1, 1)).clamp(0, 1)
    adversarial, masked = torch.tensor([0, 1, 2, 9, 9, 0]), clean == labels
    right, held = (clean == labels).float(), torch.tensor([name == "" for name in attack]).float()
    found = outcomes.Outcomes(labels, labels, images, clean, right, points, torch.ones(6), attack, adversarial, held, masked.float())
    found.after, found.curve, found.passes = {"pgd": 0.5}, [(0.0, 5 / 6), (0.1, 0.5)], 66
    found.under = {"masked": "pgd, adjoint gradient of dopri5", "curve": "pgd"}
    about = {"model": "head/tiny", "suite": "quick", "data": "digits", "data_digest": "0" * 64, "seed": 0, "from": None}
    about |= {"backbone": "convnet", "head": "ode", "training": "natural", "flags": []}
    outcomes.write(tmp_path / "outcomes/head/tiny/quick", found, ThreatModel(norm="linf", eps=0.1), about)
    numbers = writing.read(tmp_path / "outcomes", ["head/tiny"], ["quick"]).metrics()["head/tiny"]
    assert (numbers["clean"], numbers["worst_case"], numbers["masked"]) == (0.833333, 0.5, 0.833333)


def uneven(root: Path) -> Path:
    """A model that reads eight images of class 0, loses two of them under attack, and never answers class 1, which has two."""
    labels, held = torch.tensor([0] * 8 + [1] * 2), (torch.arange(10) < 6).float()
    images, right, clean = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)), (labels == 0).float(), 0 * labels
    attack = ["" if one else "pgd" for one in held.tolist()]
    found = outcomes.Outcomes(
        torch.arange(10), labels, images, clean, right, images.clone(), right, attack, clean, held, after={"pgd": 0.6}
    )
    about = {"model": "head/tiny", "suite": "quick", "data": "own", "data_digest": "0" * 64, "seed": 0, "from": None, "flags": []}
    outcomes.write(root / "outcomes/head/tiny/quick", found, ThreatModel(norm="linf", eps=0.1), about)
    return root / "outcomes/head/tiny/quick/summary.json"


def test_where_classes_differ_in_size_their_means_stand_beside_the_accuracies(tmp_path, written):
    uneven(tmp_path)
    found, out = reported(tmp_path, ["head/tiny"], ["quick"])
    numbers, text = found.metrics()["head/tiny"], (out / "index.html").read_text()
    assert (numbers["clean"], numbers["worst_case"], numbers["largest_class"]) == (0.8, 0.6, 0.8)
    assert (numbers["balanced_clean"], numbers["balanced_worst_case"]) == (0.5, 0.375)
    assert 'class="range">over classes 50.0<' in text and 'class="range">over classes 37.5<' in text
    assert "80.0% of the images are of one" in text
    show(found, width=200, file=(file := io.StringIO()))
    assert "50.0, 37.5" in (said := file.getvalue()) and "80.0 are of one class" in said
    assert ">over classes" not in (written[1] / "index.html").read_text()


def test_outcomes_from_before_there_were_means_over_classes_are_read(tmp_path):
    summary = uneven(tmp_path)
    now = writing.read(tmp_path / "outcomes", ["head/tiny"], ["quick"]).metrics()
    old = json.loads(summary.read_text())
    summary.write_text(json.dumps({key: old[key] for key in old.keys() - {"uneven", "by_class", *classes.BALANCE}}))
    assert writing.read(tmp_path / "outcomes", ["head/tiny"], ["quick"]).metrics() == now


# Stability

FLOW = "outcomes/head/sodef_natural/standard/stability.json"


def edit_flow(path: Path, **changes) -> None:
    edit(path, flows=[json.loads(path.read_text())["flows"][0] | changes])


def flows(root: Path) -> dict[str, stability.Flow]:
    return {flow.model: flow for flow in stability.section(everything(root), MODELS)}


def test_models_with_a_flow_have_a_row_of_cells_and_two_charts(run, written):
    found = flows(run)
    assert list(found) == ["head/sodef_natural", "head/sodef_robust"]
    cells = found["head/sodef_natural"].cells
    assert (cells["left half-plane"], cells["rightmost"], cells["growth"], cells["log norm"]) == ("25.0", "0.5, 1.5", "4.48, 6", "–")
    page = Page((written[1] / "index.html").read_text())
    labels = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg" and "aria-label" in attributes]
    assert sum(label.startswith("Eigenvalues of J of head/sodef_") for label in labels) == 2
    assert sum(label.startswith("Distance of adversarial from clean trajectories of head/sodef_") for label in labels) == 2
    assert any("the real part 0.5, 1.5 (median, maximum)" in label for label in labels)


def test_without_a_flow_nothing_is_shown(own):
    for path in own.glob("outcomes/*/*/*/stability.json"):
        path.unlink()
    text = (reported(own)[1] / "index.html").read_text()
    assert 'id="stability"' not in text and "#stability" not in text and "Eigenvalues" not in text


def test_the_last_suite_that_measured_a_flow_is_shown(own):
    edit_flow(own / FLOW, numbers={"nfe": 1})
    assert flows(own)["head/sodef_natural"].cells["NFE"] == "1"
    (own / FLOW).unlink()
    assert flows(own)["head/sodef_natural"].cells["NFE"] == "64"


def test_the_spectrum_is_drawn_with_its_conjugates():
    rows = stability.spectrum("head/sodef", [(-3.0, 0.0), (-1.0, 2.0), (-1.0, 2.0)])
    assert [(row["real"], row["imaginary"]) for row in rows] == [(-3.0, 0.0), (-1.0, 2.0), (-1.0, -2.0)]


def test_bounds_end_where_they_leave_the_chart(own):
    path = own / FLOW
    ways = json.loads(path.read_text())["flows"][0]["trajectories"] | {"times": [0, 1, 2]}
    ways |= {"lower": [1, 5, 50], "median": [1, 10, 100], "upper": [1, 20, 200]}
    edit_flow(path, trajectories=ways | {"exponents": {"lipschitz": [0, 5000, 10000], "log_norm": [0, 3, 6]}})
    flow = flows(own)["head/sodef_natural"]
    drawn = flow.growth.spec["data"]["values"]
    lines = {what: [(row["t"], row["ratio"]) for row in drawn if row["what"] == what] for what in {row["what"] for row in drawn}}
    assert lines[stability.MEASURED] == [(0, 1), (1, 10), (2, 100)]
    assert [t for t, _ in lines["estimate by the logarithmic norm"]] == [0, 1, 2]
    (_, first), (t, last) = lines["bound exp(L t)"]
    assert first == 1 and t < 0.01 and last == pytest.approx(200 * 10**stability.ROOM)
    assert dict(flow.curves)["bound exp(L t)"] == ["1", stability.power(5000), stability.power(10000)]


def test_powers_of_e_do_not_overflow():
    assert [stability.power(x) for x in (0, 3, -3, 23, 5000)] == ["1", "20.1", "0.0498", "9.74e+09", "2.97e+2171"]


def test_a_flow_whose_points_moved_nothing_is_said_to_have_no_trajectories(own):
    edit_flow(own / FLOW, trajectories=None, spectrum=[])
    text = (reported(own)[1] / "index.html").read_text()
    assert "No point of suite standard moves z(0)" in text and Page(text)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"T": 0}, "flows.0.T: Input should be greater than 0 (got 0)"),
        ({"spectrum": [[1.0]]}, "flows.0.spectrum.0"),
        ({"numbers": {"nfe": "many"}}, "flows.0.numbers.nfe: Input should be a valid number"),
        ({"trajectories": dict(pairs=1, times=[0, 1], lower=[1], median=[1, 1], upper=[1, 1], exponents={})}, "as many points"),
    ],
)
def test_a_damaged_measurement_of_stability_is_refused(own, changes, said):
    edit_flow(own / FLOW, **changes)
    text = mistake(own)
    again = "Delete stability.json and run `dvc repro attack@head/sodef_natural-standard`."
    assert text.startswith(str(own / FLOW)) and said in text and text.endswith(again)


# Words, charts, pictures, terminal


def test_reading_follows_the_intervals(written):
    lead, *rest = wording.reading(written[0])
    text = " ".join(rest)
    best = written[0].ranked[0]
    assert lead.startswith(f"{best.model} keeps {wording.percent(best.worst.value)}%")
    assert "Better than the twin without the defence, beyond both intervals: head/sodef_natural" in text
    assert "No difference from the twin that 200 images could show: head/sodef_robust" in text
    assert "A wrong gradient would have reported" in text and "for head/sodef_natural" in text


def test_radius_is_written_as_the_literature_does():
    assert [wording.radius(eps) for eps in (8 / 255, 0.031373, 0.15, 0.1, 1.0, 0.2)] == ["8/255", "8/255", "0.15", "0.1", "1", "0.2"]


@pytest.mark.parametrize("name", ["glance", "radius", "loss", "accuracy", "confusion", "spectrum", "growth"])
def test_every_colour_of_a_figure_is_one_of_the_pages(name):
    spec = json.dumps(json.loads((figures.TEMPLATE / f"figures/{name}.json").read_text()))
    config = (figures.TEMPLATE / "figures/config.json").read_text()
    assert set(re.findall("#[0-9a-f]{6}", spec + config)) <= set(figures.palette().values())


def test_figures_follow_the_theme_and_their_axes_are_in_per_cent(run):
    svg = figures.figure("radius", tidy.points(everything(run)), "says", MODELS).svg
    assert "#" not in re.sub("&#", "", svg) and "var(--s3)" in svg and ">50%<" not in svg and ">40%<" in svg
    assert svg.startswith('<svg role="img" aria-label="says"') and "://" not in svg and "style=" not in svg


def test_picture_shows_the_pixels():
    image = np.linspace(0, 1, 3 * 8 * 8, dtype=np.float32).reshape(3, 8, 8)
    shown = np.asarray(Image.open(io.BytesIO(b64decode(pictures.png(image).split(",")[1]))))
    assert np.array_equal(shown.transpose(2, 0, 1), np.round(255 * image))
    assert pictures.shrunk(np.ones((3, 224, 200))).shape == (3, 56, 50)


def test_the_same_images_are_shown_for_every_model(run):
    gallery = pictures.gallery(everything(run))
    assert len(gallery.clean) == 5 and len({name for _, name, _ in gallery.clean}) == 5
    examples = dict(gallery.rows)
    assert {one.fate for one in examples["backbone/natural"]} == {"broken"}
    assert all(one.amplified == pytest.approx(0.5 / 0.15, rel=0.01) for one in examples["head/sodef_natural"])


def test_the_album_has_every_image_of_every_model(run):
    found = everything(run)
    made, suites = album.album(found), found["head/sodef_natural"]
    fates, position = made.about["models"][1], next(i for i in range(200) if suites["standard"].attack[i] == "apgd_t")
    assert made.about["image"] == suites["quick"].image.tolist() and len(made.sheets) == 1 + len(MODELS)
    assert fates["name"] == "head/sodef_natural" and fates["attacks"][fates["attack"][position]] == "apgd_t"
    assert fates["held"] == table.held(suites).tolist() and fates["read"][position] == suites["standard"].adversarial[position]
    sheet = np.asarray(Image.open(io.BytesIO(b64decode(made.sheets[2].split(",")[1]))))
    row, column = divmod(position, made.about["columns"])
    assert np.array_equal(sheet[8 * row :, 8 * column :][:8, :8], np.round(255 * suites["standard"].points(position)[1][0]))


def test_points_of_other_models_count_only_where_nothing_else_broke_an_image(run):
    suites = everything(run)["head/sodef_natural"]
    exchanged = replace(
        suites["standard"], robust=np.zeros(200), summary=suites["standard"].summary.model_copy(update={"suite": "exchange"})
    )
    chosen = pictures.strongest(suites | {"exchange": exchanged})
    held = np.array([one.robust for one in suites.values()]).min(0) == 1
    assert held.any() and (chosen[held] == 2).all() and (chosen[~held] < 2).all()
    names = set(suites["standard"].attack.tolist()) - {"", "clean"}
    assert {name for name in exchanged.by.tolist() if "point" in name} == {f"the point of {name}" for name in names}


def test_large_images_are_averaged_so_that_the_album_stays_light():
    assert album._block((300, 3, 32, 32), 5) == 1 and album._block((300, 3, 224, 224), 5) == 4
    block = album._block((10000, 3, 32, 32), 5)
    assert 10000 * 3 * (32 // block) ** 2 * 5 <= album.MOST


def test_classes_add_up_to_the_whole(run):
    found = everything(run)
    made, rows = by_class.by_class(found), table.tabulate(found, list(SUITES)).rows
    for i, row in enumerate(rows):
        assert sum(one.n * one.shares[i][1] for one in made.classes) / 200 == pytest.approx(row.worst.value)
        assert sum(cell["images"] for cell in made.becomes[i][1]) == 200
        assert made.means[i] == pytest.approx((row.balance["balanced_clean"], row.balance["balanced_worst_case"]), abs=1e-6)


def test_pairs_are_compared_image_by_image(run):
    found = everything(run)
    difference = pairs.differences(found)["backbone/natural", "adversarial/pgd"]
    one, other = (table.held(found[model]) for model in ("backbone/natural", "adversarial/pgd"))
    assert (difference.k, difference.l) == ((one > other).sum(), (other > one).sum())
    assert difference.interval == pairs.paired(dict(enumerate(one)), dict(enumerate(other))).interval


def test_every_flag_of_the_documentation_has_its_meaning_on_the_page():
    text = (Path(__file__).parents[2] / "docs/flags.md").read_text(encoding="utf-8")
    assert set(re.findall("^## (.*)$", text, re.M)) == set(MEANINGS)


def test_terminal_summary_says_what_the_table_says(written):
    show(written[0], width=40, file=(file := io.StringIO()))
    text = file.getvalue()
    for row in written[0].rows:
        assert row.model in text and f"{wording.percent(row.worst.value)} {wording.interval(row.worst)}" in text


# Mistakes

FOLDER = "outcomes/head/sodef_natural/quick"
AGAIN = "dvc repro attack@head/sodef_natural-quick"


@pytest.mark.parametrize("name", ["summary.json", "outcomes.csv", "adversarial.safetensors"])
def test_missing_and_truncated_files_are_named(own, name):
    path = own / FOLDER / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 3])
    text = mistake(own)
    assert text.startswith(str(path)) and text.endswith(f"Delete {name} and run `{AGAIN}`.")
    path.unlink()
    assert mistake(own) == f"{path}: the file is missing. Run `{AGAIN}`."


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"robust": 1.2}, "robust: Input should be less than or equal to 1 (got 1.2)"),
        ({"n": 7}, "rows, summary.json and adversarial.safetensors disagree (got 200, 7 and 200 images)"),
        ({"robust": 0.9}, "robust is not what summary.json says"),
        ({"model": "head/other"}, "describes another measurement (got head/other, quick)"),
        ({"threat": {"norm": "linf", "eps": 0.3}}, "the threat model differs from that of"),
        ({"data_digest": "0" * 64}, "the data digest differs from that of"),
    ],
)
def test_summaries_at_odds_are_refused(own, changes, said):
    edit(own / FOLDER / "summary.json", **changes)
    text = mistake(own)
    assert text.startswith(str(own / FOLDER)) and said in text and f"`{AGAIN}`" in text


@pytest.mark.parametrize(
    "old, new, said",
    [
        (",robust,", ",sturdy,", "no column robust"),
        ("\n0,0,", "\n0,x,", "'x'"),
        ("\n0,", "\n3,", "an image occurs twice"),
        ("\n0,", "\n5000,", ""),
    ],
)
def test_damaged_rows_are_refused(own, old, new, said):
    path = own / FOLDER / "outcomes.csv"
    path.write_text(path.read_text().replace("\r\n", "\n").replace(old, new, 1))
    text = mistake(own)
    assert said in text and AGAIN in text
    if not said:
        expected = "the set of images differs from that of {} (got 200 images, 199 of them among the other's 200). Run `{}`."
        assert text == f"{own / FOLDER}: " + expected.format(own / "outcomes/backbone/natural/quick", AGAIN)


def test_damaged_history_is_refused(own):
    path = own / "history/adversarial/pgd.csv"
    path.write_text("phase,epoch,loss\npgd,1,low\n")
    text = f"{path}: the file is damaged (got could not convert string to float: 'low'). Delete it and run `dvc repro adversarial@pgd`."
    assert mistake(own) == text


def test_a_suite_may_not_take_the_name_of_a_column(own):
    (own / "outcomes/backbone/natural/quick").rename(own / "outcomes/backbone/natural/clean")
    edit(own / "outcomes/backbone/natural/clean/summary.json", suite="clean")
    text = "params.yaml: suites: the name is that of a column of the report (got clean). Rename the suite."
    assert mistake(own, models=["backbone/natural"], suites=["clean"]) == text
    assert mistake(own, models=[]) == "params.yaml: attack: nothing to report (got 0 models, 2 suites). Name at least one of each."
