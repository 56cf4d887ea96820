"""The benchmark of speed: what moved is told from noise, what is there is not measured again, and its figures are of what they say."""

import json
import sys

import pytest

from basin.errors import Mistake
from benchmarks import side_by_side, speed


def test_a_ratio_is_that_of_the_rounds():
    clock = [0.0]
    seconds = {"ours": iter([9.0, 6.0, 8.0, 30.0]), "other": iter([9.0, 2.0, 4.0, 10.0])}  # the first calls are not measured

    def passes(side: str) -> None:
        clock[0] += next(seconds[side])

    row = side_by_side(lambda: passes("ours"), lambda: passes("other"), 3, lambda: clock[0])
    assert row == {"seconds": 8.0, "floor": 4.0, "ratio": 3.0, "low": 2.5, "high": 3.0, "rounds": 3}


def test_what_moved_is_beyond_both_spreads():
    was = [{"what": name, "ratio": 1.2, "low": 1.1, "high": 1.3} for name in ("slower", "quicker", "the same")]
    now = [("slower", 1.5, 1.4, 1.6), ("quicker", 1.0, 0.9, 1.05), ("the same", 1.35, 1.25, 1.4), ("new", 9.0, 8.0, 10.0)]
    rows = [dict(zip(("what", "ratio", "low", "high"), row)) for row in now]
    assert list(speed.moved(was, rows)) == ["slower: 1.20 -> 1.50", "quicker: 1.20 -> 1.00"]


def run(monkeypatch, folder, *words):
    monkeypatch.setattr(sys, "argv", ["speed", "--toy", "--folder", str(folder), *words])
    speed.main()


def test_parts_are_written_as_they_come_and_left_where_they_are_there(tmp_path, monkeypatch):
    run(monkeypatch, tmp_path, "--parts", "growth")
    (found,) = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))["parts"].values()
    assert [row["what"] for row in found] == ["Auto-PGD, in images", "Auto-PGD, in steps"] and all(0.2 < row["ratio"] < 2 for row in found)
    monkeypatch.setitem(speed.PARTS, "growth", lambda size: 1 / 0)
    run(monkeypatch, tmp_path, "--parts", "growth", "--resume")
    assert "| Auto-PGD, in steps | " in (tmp_path / "speed.md").read_text(encoding="utf-8")


def test_an_unknown_part_is_named(tmp_path, monkeypatch):
    with pytest.raises(Mistake) as mistake:
        run(monkeypatch, tmp_path, "--parts", "attcks")
    assert str(mistake.value).startswith("--parts: no such part (got 'attcks'). Known: attacks, verdicts, ")
