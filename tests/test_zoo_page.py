"""The zoo's page says of each model what judging it says, and of each flag where its figures lie."""

import csv

import pytest
from zoo import honest, hostile
from zoo.judging import judged

from benchmarks import zoo

pytestmark = pytest.mark.slow  # the zoo is judged
NAMES = ("probabilities", "no_grad inside", "one output")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(the page, the rows of the table)."""
    animals = [("hostile", animal) for animal in hostile.ANIMALS if animal.name in NAMES] + [("honest", honest.ANIMALS[0])]
    folder = tmp_path_factory.mktemp("zoo")
    zoo.write(folder, *zoo.measure(animals, 20), "a command")
    with (folder / "zoo.csv").open(encoding="utf-8") as file:
        return (folder / "zoo.md").read_text(encoding="utf-8"), {row["model"]: row for row in csv.DictReader(file)}


def test_a_row_says_what_judging_says(written):
    page, rows = written
    found, row = judged(honest.ANIMALS[0]), rows["linear"]
    assert (float(row["clean"]), float(row["worst"])) == (found.clean, found.worst_case) and row["flags"] == ""
    low, high = found.interval
    truth = " / ".join(f"{100 * share:.1f}" for share in honest.ANIMALS[0].known())
    assert f"| linear |  | {truth} | {100 * found.clean:.1f} / {100 * found.worst_case:.1f} [{100 * low:.1f}, {100 * high:.1f}] |" in page
    assert rows["probabilities"]["flags"] == "probabilities"


def test_a_refused_model_has_its_sentence(written):
    page, rows = written
    sentence = "model: should give logits [n, classes] (got float32 [2, 1] for 2 images). Mend its forward pass."
    assert rows["one output"]["refused"] == sentence and rows["one output"]["worst"] == "" and f"| refused: {sentence} |" in page


def test_a_model_without_a_gradient_stands_beside_its_twin(written):
    page, _ = written
    pairs = page.split("## Without a gradient")[1].split("##")[0]
    assert pairs.count("| no_grad inside | 20 |") == 1


def test_margins(written):
    page, _ = written
    margins = page.split("## Margins of the flags")[1]
    _, honest_, limit, planted, models, near = next(line for line in margins.split("\n") if line.startswith("| `probabilities`"))[
        2:-2
    ].split(" | ")
    assert float(honest_) < 0.1 and limit == "1" and float(planted) > 100 and (models, near) == ("1, 1", "")
    assert zoo.margin("f", {"limit": [0.5], "honest": [0.1, 0.46], "planted": [0.9]}) == ["`f`", "0.46", "0.5", "0.9", "2, 1", "near"]
    assert zoo.margin("f", {"limit": [0.5], "honest": [], "planted": [0.9]})[1::4] == ["", ""]
