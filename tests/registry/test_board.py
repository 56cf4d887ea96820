"""Pages for others: the leaderboard of a data set and threat as a static folder, and a run's report with what the registry knows of it."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest
from browser import listen, page  # noqa: F401
from test_registry import MODELS, NAME, digests, enter, registered, registered_workspace, retrain, store, workspace  # noqa: F401

from basin.errors import Mistake
from basin.registry import board, registration

pytestmark = pytest.mark.slow  # a registered run of its own

BOARD = Path("board")


def test_the_leaderboard_has_every_version_with_its_page_and_outcomes(registered):  # noqa: F811
    retrain(registered, "head/ode", 1, 30)
    registration.register_all(registered, digests())
    assert board.leaderboard(BOARD, "digits", "linf", 0.15) == 3
    text = (BOARD / "index.html").read_text(encoding="utf-8")
    rows = list(csv.DictReader((BOARD / "table.csv").open(newline="", encoding="utf-8")))
    assert [(row["version"], row["model"], row["worst_case"], row["twin"]) for row in rows] == [
        ("3", "head/ode", "0.75", "0.25"), ("2", "head/ode", "0.5", "0.25"), ("1", "backbone/natural", "0.25", ""),
    ]  # fmt: skip
    assert all(int(float(row["parameters"])) > 0 and float(row["latency_ms.1"]) > 0 for row in rows)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"]) and row["author"] and row["commit"] for row in rows)
    linked = re.findall(f'href="({NAME}-[^"]*)"', text)
    assert len(linked) == 3 and "://" not in text and "script-src 'sha256-" in text
    for one in linked:
        places = re.findall(r'href="(outcomes/[^"#]*)"', (BOARD / one).read_text(encoding="utf-8"))
        assert places and all((BOARD / one).parent.joinpath(place).is_file() for place in places)
    assert not list(BOARD.rglob("*.safetensors"))
    assert board.leaderboard(BOARD, "digits", "linf", 0.15) == 3, "it is written anew"


def test_what_stands_in_the_way_of_a_leaderboard_is_said(registered):  # noqa: F811
    with pytest.raises(Mistake, match=r"registry: no version fits \(got digits, linf, 0.2\). `basin models` lists what there is."):
        board.leaderboard(BOARD, "digits", "linf", 0.2)
    (BOARD / "thesis").mkdir(parents=True)
    with pytest.raises(Mistake, match=r"board: holds something else \(got no index.html in it\). Give another --to."):
        board.leaderboard(BOARD, "digits", "linf", 0.15)


def test_the_page_of_a_registered_run_has_versions_commit_date_and_costs(registered):  # noqa: F811
    text = board.PAGE.read_text(encoding="utf-8")
    for number, model in enumerate(MODELS, 1):
        assert f'<a href="{board.LOCAL}/#/models/{NAME}/versions/{number}">{NAME}/{number}</a>' in text and model in text
    for term in ("commit", "by", "date", "Basin", "device", "with"):
        assert f"<dt>{term}</dt><dd>" in text
    for title, _ in board.COSTS.values():
        assert f">{title}</th>" in text


def test_a_servers_address_is_given_without_its_password(registered, monkeypatch):  # noqa: F811
    version = store().get_model_version(NAME, "1")
    assert board.address(version) == ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:se@cret@mlflow.example:5001/team/")
    assert board.address(version) == f"https://mlflow.example:5001/team/#/models/{NAME}/versions/1"


@pytest.mark.parametrize("width", [360, 1440])
def test_a_person_at_the_leaderboard(registered, page: Any, width: int):  # noqa: F811
    board.leaderboard(BOARD, "digits", "linf", 0.15)
    told = listen(page)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto((BOARD / "index.html").absolute().as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.locator("#results thead button", has_text="clean").click()
    page.get_by_label("Filter by standing").fill("champion")
    assert [row.split("\n")[0] for row in page.locator("#results tbody tr:visible th").all_inner_texts()] == ["head/ode champion"]
    page.shot(f"leaderboard-{width}")
    page.get_by_role("link", name="head/ode").click()
    page.get_by_role("heading", name="Adversarial robustness on digits").wait_for()
    page.locator("#album output").filter(has_text="1 of 40").wait_for()
    assert told == []
