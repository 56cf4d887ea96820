"""`benchmarks.certificates`: a line a model, seed and way to certify, with a column for each radius; earlier rows stay."""

import pytest

from basin.errors import Mistake
from benchmarks import write_csv
from benchmarks.certificates import FIELDS, load, page


def row(by: str, lipschitz: float | None, radius: float, certified: float) -> dict:
    share = {"radius": radius, "certified": certified, "low": certified - 0.1, "high": certified + 0.1}
    about = {"model": "head/sll", "seed": 3, "data": "digits", "n": 50, "lipschitz": lipschitz}
    return about | {"by": by, "clean": 0.9, "seconds": 1.5} | share


TABLE = [
    row("Lipschitz", 2.5, 0.25, 0.7),
    row("Lipschitz", 2.5, 1.0, 0.2),
    row("smoothing", None, 0.25, 0.6),
    row("smoothing", None, 1.0, 0.5),
]


def test_radii_are_columns():
    heading, _, first, second = page(TABLE).splitlines()
    assert heading == "| model | seed | L | by | read | certified at 0.25 | certified at 1 | n | seconds |"
    assert first == "| head/sll | 3 | 2.5 | Lipschitz | 90.0 | 70.0 [60.0, 80.0] | 20.0 [10.0, 30.0] | 50 | 1.5 |"
    assert second == "| head/sll | 3 |  | smoothing | 90.0 | 60.0 [50.0, 70.0] | 50.0 [40.0, 60.0] | 50 | 1.5 |"


def test_earlier_rows_are_read_back_as_they_were(tmp_path):
    place = tmp_path / "certificates.csv"
    assert load(place, [0.25, 1.0]) == []
    write_csv(place, FIELDS, TABLE)
    assert load(place, [0.25, 1.0]) == TABLE and page(load(place, [0.25, 1.0])) == page(TABLE)
    with pytest.raises(Mistake, match=r"--radii: .*certificates\.csv has others \(got \[0\.5\], there are \[0\.25, 1\.0\]\)"):
        load(place, [0.5])
