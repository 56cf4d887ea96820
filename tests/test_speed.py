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
    (found,) = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8")).values()
    assert [row["what"] for row in found["rows"]][:2] == ["Auto-PGD, in images", "Auto-PGD, in steps"]
    assert all(0.2 < row["ratio"] < 2 for row in found["rows"]) and found["command"] == "python -m benchmarks.speed --device cpu --toy"
    monkeypatch.setitem(speed.PARTS, "growth", lambda size: 1 / 0)
    monkeypatch.setitem(speed.PARTS, "ode", lambda size: [{"what": "one", "seconds": 1.0, "floor": 1.0, "ratio": 1.0, "rounds": 1}])
    run(monkeypatch, tmp_path, "--parts", "growth,ode", "--resume")
    text = (tmp_path / "speed.md").read_text(encoding="utf-8")
    assert "| Auto-PGD, in steps | " in text and "| one | 1 | 1 | 1 |  | 1 |" in text
    with pytest.raises(ZeroDivisionError):  # all are there, so it begins anew
        run(monkeypatch, tmp_path, "--parts", "growth,ode", "--resume")


def test_a_part_of_another_machine_is_measured_again(tmp_path, monkeypatch):
    for part in ("growth", "ode"):
        monkeypatch.setitem(speed.PARTS, part, lambda size: [])
    run(monkeypatch, tmp_path, "--parts", "ode")
    monkeypatch.setattr(speed, "machine", lambda device: "another")
    run(monkeypatch, tmp_path, "--parts", "growth,ode", "--resume")
    assert {part["machine"] for part in json.loads((tmp_path / "speed.json").read_text(encoding="utf-8")).values()} == {"another"}


def test_memory_of_a_solve_is_in_proportion_and_recomputed_to_the_root():
    found = {row["what"]: row["ratio"] for row in speed.ode_pace.growth(3)}
    assert found["Flow, memory in T"] == pytest.approx(1, abs=0.05) and found["Flow, recomputed, memory in T"] == pytest.approx(
        0.5, abs=0.1
    )


def test_what_one_round_measured_moves_beyond_a_quarter_and_a_verdict_at_once():
    was = [{"what": "a", "ratio": 1.0, "says": "robust 0.6"}, {"what": "b", "ratio": 1.0}, {"what": "c", "ratio": 1.0}]
    now = [{"what": "a", "ratio": 1.1, "says": "robust 0.7"}, {"what": "b", "ratio": 1.4}, {"what": "c", "ratio": 2.0}]
    assert list(speed.moved(was, now)) == ["a: robust 0.6 -> robust 0.7", "c: 1.00 -> 2.00"]


def test_a_command_that_fails_is_no_time(tmp_path):
    with pytest.raises(Mistake, match="ended with code 3"):
        speed._process("raise SystemExit(3)")


def test_an_unknown_part_is_named(tmp_path, monkeypatch):
    with pytest.raises(Mistake) as mistake:
        run(monkeypatch, tmp_path, "--parts", "attcks")
    assert str(mistake.value).startswith("--parts: no such part (got 'attcks'). Known: attacks, verdicts, ")
