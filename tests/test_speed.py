"""The benchmark of speed: what moved is told from noise, what is there is not measured again, and its figures are of what they say."""

import json
import sys
import time

import pytest

from basin.errors import Mistake
from benchmarks import side_by_side, speed


def test_a_ratio_is_that_of_the_rounds():
    row = side_by_side(lambda: time.sleep(0.06), lambda: time.sleep(0.02), 3, time.perf_counter)
    assert 2 < row["low"] <= row["ratio"] <= row["high"] < 4 and row["seconds"] > 0.05 > row["floor"] > 0.015


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
