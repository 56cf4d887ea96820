"""`benchmarks.seeds`: a planted difference between models is found with an interval that holds it, whatever images each seed drew."""

import json

import numpy as np
import pytest
from synthetic_outcomes import RUN, write_run

from basin.errors import Mistake
from benchmarks.seeds import Measured, held_by, interval, load, page, read, rows, save

PARAMS = """
seed: 0
data: {kind: digits}
threat: {norm: linf, eps: 0.15}
backbone:
  natural: {backbone: {kind: convnet}, training: {kind: natural}, schedule: {epochs: 1}}
adversarial:
  pgd: {from: backbone/natural, training: {kind: pgd}, schedule: {epochs: 1}}
suites: {quick: {}, standard: {}}
attack: {models: [backbone/natural, adversarial/pgd], suites: [quick, standard], images: 200}
"""


def planted(share: float, seed: int, n: int = 400) -> dict[int, float]:
    """n of 600 images, each held with a chance of `share`."""
    draw = np.random.default_rng(seed)
    return {int(image): float(draw.random() < share) for image in draw.permutation(600)[:n]}


def test_the_mean_is_over_images_and_seeds():
    assert np.nanmean(held_by([{0: 1.0, 1: 0.0}, {1: 1.0, 7: 1.0}])) == 0.75
    assert np.nanmean(held_by([{0: 1.0, 1: 0.0}], [{0: 0.0, 1: 0.0}])) == 0.5
    assert held_by([{0: 1.0, 3: 0.0}], [{3: 1.0}]).tolist() == [[-1.0]]  # of the images that both were attacked on


def test_an_interval_holds_what_was_planted_and_knows_of_seeds():
    better, worse = [planted(0.7, seed) for seed in range(3)], [planted(0.6, seed + 9) for seed in range(3)]
    value, (low, high) = np.nanmean(values := held_by(better, worse)), interval(values)
    assert low < 0.1 < high and low < value < high and 0.03 < high - low < 0.3
    apart = held_by([dict.fromkeys(range(400), share) for share in (0.5, 0.6, 0.7)])  # all images alike: what is left is the seeds'
    assert np.nanmean(apart) == pytest.approx(0.6) and interval(apart) == pytest.approx((0.5, 0.7))


def test_a_row_a_model_of_the_seeds_that_have_it_beside_the_one_asked_for():
    run = {name: Measured(planted(0.9, 1), planted(share, 2)) for name, share in (("a", 0.5), ("b", 0.6))}
    table = list(rows([run, {**run, "c": run["a"]}], "a"))
    assert [(row["model"], row["seeds"]) for row in table] == [("b", 2), ("a", 2), ("c", 1)]
    assert "minus" not in table[1] and table[0]["minus"] > 0 == table[2]["minus"]
    assert page(table).count("\n| ") == 3 and "minus a" in page(table)
    with pytest.raises(Mistake, match="--against: not attacked in all runs"):
        list(rows([run], "z"))


def test_a_finished_run_is_read_as_its_summaries_have_it(tmp_path):
    write_run(tmp_path, [made for made in RUN if not made.head == "sodef"])
    (tmp_path / "params.yaml").write_text(PARAMS, encoding="utf-8")
    seed, models = read(tmp_path)
    assert seed == 0
    for model, measured in models.items():
        folder = tmp_path / "outcomes" / model
        summaries = [json.loads((folder / suite / "summary.json").read_text()) for suite in ("quick", "standard")]
        assert np.mean([*measured.clean.values()]) == pytest.approx(summaries[0]["clean"])
        assert np.mean([*measured.worst.values()]) <= min(summary["robust"] for summary in summaries) < summaries[0]["clean"]


def test_images_are_kept_for_the_seeds_that_follow(tmp_path):
    one, two = ({"a": Measured(planted(0.9, seed), planted(0.5, seed)), "b": Measured({7: 1.0}, {7: 0.25})} for seed in (1, 2))
    del two["b"]  # which another run of that seed may bring
    save({2: two, 0: one}, tmp_path / "page.images.csv")
    assert load(tmp_path / "page.images.csv") == {0: one, 2: two}
    assert load(tmp_path / "none.csv") == {}
