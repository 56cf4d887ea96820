"""The README's figures are those of docs/results, and its picture is there and small."""

import re
import tomllib

import pytest
from pages import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PICTURES = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)


def table(text: str, n: int = 0) -> list[dict[str, str]]:
    """The rows of the text's n-th table with a column `worst case`, without bold type."""
    rows = [[cell.strip(" *") for cell in re.sub(r"\*\*", "", line).strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    start = [i for i, row in enumerate(rows) if "worst case" in row][n]
    return [dict(zip(rows[start], row)) for row in rows[start + 2 : start + 6]]


@pytest.mark.parametrize(("n", "page"), [(0, "digits"), (1, "fashion_mnist")])
def test_the_tables_are_those_of_the_results(n, page):
    theirs = table((ROOT / f"docs/results/{page}.md").read_text(encoding="utf-8"))
    for mine, row in zip(table(README, n), theirs, strict=True):
        assert {name: cell.split(" ")[0] for name, cell in mine.items()} == {name: row[name].split(" ")[0] for name in mine}
        assert mine["worst case"] == row["worst case"]


def test_the_picture_is_there_and_small():
    *_, picture = PICTURES
    assert picture.endswith("report.png") and (ROOT / picture).stat().st_size < 200 * 1024


def test_the_badges_are_files_of_ours_and_true():
    """What only a service could say, whether the tests pass, has no badge."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    said = [re.findall(r"<text[^>]*>([^<]+)", (ROOT / badge).read_text(encoding="utf-8")) for badge in PICTURES[:-1]]
    assert said == [["Python", project["requires-python"].replace(">=", "≥ ")], ["licence", project["license"]]]
