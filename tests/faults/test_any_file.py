"""Whatever has become of a file that Basin reads again: it is read, or refused in a sentence. Good files are drawn, and damaged."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from small import SODEF, classifier
from synthetic_outcomes import Made, write_run

import basin
from basin import checkpoint
from basin.errors import Mistake
from basin.evaluation import outcomes
from basin.models import artifact
from basin.registry import scoring, snapshot
from basin.report import writing
from basin.repro import lock
from basin.tracking import mirror

FAST, SLOW = 25, 400  # cases of each kind; the first are the same in every run
SENTENCE = re.compile(r".+: .+\. .+", re.DOTALL)
TOKEN = re.compile(rb"[\w.+-]+")
ODD = [
    b"", b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"9" * 30, b"9" * 5000, b"1000000000000", b'"', b"'", b"\n", b"\0", b"\xff\xfe",
    b"\xed\xa0\x80", b"\\ud800", b"{}", b"[]", b"[1]", b"{", b"]", b"[" * 100_000, b"{" * 3000, b"- " * 3000, b"../../up", b"/etc/passwd",
    b"&a [*a]", b"*x", b"!!python/object:os.system x", b"2020-13-45", b",", b":", b"<script>",
]  # fmt: skip


def damaged(draw: Random, content: bytes) -> bytes:
    """Up to three changes: bytes flipped, cut, doubled or put in, a word replaced, a line moved or lost."""
    for _ in range(draw.randint(0, 3)):
        at, to = sorted(draw.randrange(len(content) + 1) for _ in "ab")
        words, lines = list(TOKEN.finditer(content)), content.splitlines(True)
        match draw.choice(["flip", "cut", "drop", "double", "insert", "word", "word", "word", "line", "swap"]):
            case "flip" if content:
                at = min(at, len(content) - 1)
                content = content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
            case "cut":
                content = content[:at]
            case "drop":
                content = content[:at] + content[to:]
            case "double":
                content = content[:to] + content[at:]
            case "insert":
                content = content[:at] + draw.choice(ODD) + content[at:]
            case "word" if words:
                word = draw.choice(words)
                content = content[: word.start()] + draw.choice([*ODD, draw.choice(words).group()]) + content[word.end() :]
            case "line" if lines:
                lines.pop(draw.randrange(len(lines)))
                content = b"".join(lines)
            case "swap" if lines:
                draw.shuffle(lines)
                content = b"".join(lines)
    return content


def examine(examples: int, folder: Path, one: Callable[[Random, Path], bool], caplog: Any) -> None:
    """`one` on a copy of a folder in which one file was damaged; whether it was read all the same. Some are, and some are not."""
    read: list[bool] = []
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]

    @settings(
        max_examples=examples, deadline=None, derandomize=examples < 100, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
    )
    @given(st.randoms(use_true_random=True))
    def run(draw: Random) -> None:
        place = folder.with_name("case")
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder, place)
        path = place / draw.choice(files)
        path.write_bytes(damaged(draw, path.read_bytes()))
        read.append(one(draw, place))

    with caplog.at_level(logging.CRITICAL):
        run()
    assert len(read) == examples and 0.02 < sum(read) / examples < 0.98, sum(read) / examples


def tried(call: Callable[..., Any], *arguments: Any) -> Any:
    """What it gives, or None where it is refused in sentences."""
    try:
        return call(*arguments)
    except Mistake as mistake:
        assert all(SENTENCE.fullmatch(text) and text.encode() for text in mistake.messages), mistake
        return None


cases = pytest.mark.parametrize("examples", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)])


@cases
def test_any_model_folder(examples, tmp_path, caplog):
    artifact.save(tmp_path / "below", classifier().eval())
    artifact.save(tmp_path / "model", classifier(head=SODEF).eval(), tmp_path / "below")

    def one(draw: Random, place: Path) -> bool:
        return bool(tried(basin.load, place) and tried(artifact.load_twin, place))

    examine(examples, tmp_path / "model", one, caplog)


@cases
def test_any_outcomes(examples, tmp_path, caplog):
    """Read, tabulated and drawn."""
    made = Made("head/x", 0.5, head="sodef", masking=2.0, flags=("gradient-masked",))
    write_run(tmp_path / "run", [made], n=12, suites={"quick": {"fgsm": 0.7, "pgd": 0.9}})

    def one(draw: Random, place: Path) -> bool:
        return None is not tried(writing.write, place / "outcomes", place / "history", ["head/x"], ["quick"], place / "report")

    examine(examples, tmp_path / "run", one, caplog)


@cases
def test_any_checkpoint(examples, tmp_path, caplog):
    """What is not as it was written is not gone on from."""
    groups, progress = {"model": {"w": torch.randn(3, 4), "b": torch.tensor(1.0)}, "best": {}}, {"phase": 0, "history": [{"loss": 0.5}]}
    (place := tmp_path / "kept").mkdir()
    checkpoint.write(place / "training", groups, progress)
    images, labels = torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])
    untouched = outcomes.Outcomes.untouched(labels, images, labels, torch.zeros(4, 3), torch.ones(4), 4)
    (place / "suite").write_bytes(outcomes.pack(untouched, 1, 3))
    whole = {path.name: path.read_bytes() for path in place.iterdir()}

    def one(draw: Random, place: Path) -> bool:
        found, said = checkpoint.read(place / "training")
        changed = {name for name, content in whole.items() if (place / name).read_bytes() != content}
        assert said == ({} if "training" in changed else progress) and found.keys() == ({} if "training" in changed else groups).keys()
        try:
            assert outcomes.unpack(place / "suite", labels, images, labels)[1] == 1 and "suite" not in changed
        except checkpoint.UNREADABLE:
            assert "suite" in changed
        return not changed

    examine(examples, place, one, caplog)


LOCK = """schema: '2.0'
stages:
  prepare:
    cmd: python -m basin.stages.prepare
    deps:
    - {path: pipeline/basin/stages/prepare.py, hash: md5, md5: 98f97a791ef1457579a5b7e88a495063, size: 10}
    params:
      params.yaml:
        data:
          kind: digits
          classes: []
    outs:
    - path: data/prepared
      hash: md5
      md5: 98f97a791ef1457579a5b7e88a495063.dir
      size: 128
      nfiles: 4
  report:
    cmd: python -m basin.stages.report
    outs:
    - path: report/table.csv
      hash: md5
      md5: 98f97a791ef1457579a5b7e88a495064
"""


@cases
def test_any_dvc_lock(examples, tmp_path, caplog, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/dvc.lock").write_text(LOCK, encoding="utf-8")
    assert lock.digest("data/prepared", tmp_path / "run/dvc.lock") == "98f97a791ef1457579a5b7e88a495063.dir"

    def one(draw: Random, place: Path) -> bool:
        file = place / "dvc.lock"
        tried(lock.digest, "data/prepared", file)
        tried(snapshot.outputs, file.read_text(encoding="utf-8", errors="replace"))
        found = tried(lock.recorded, file)
        lock.mend(file, place / "kept", place / "rwlock")
        return found is not None

    examine(examples, tmp_path / "run", one, caplog)


JOURNAL = [
    {
        "time": 1,
        "start": {"experiment": "digits", "run_name": "head/x", "params": {"kind": "sodef"}, "resume": "head/x.1.json"},
        "tags": {},
    },
    {"time": 2, "metrics": {"loss": 0.5, "error": float("nan")}, "step": 1},
    {"time": 3, "tags": {"flag": "masked", "n": 3}},
    {"time": 4, "artifact": "history.csv"},
    {"time": 5, "end": "FINISHED"},
]


@cases
def test_any_outbox(examples, tmp_path, caplog, monkeypatch):
    """To an MLflow that does not answer: what is whole stays for the next time, to the byte, what nobody can read beside it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    whole = "".join(json.dumps(line) + "\n" for line in JOURNAL).encode()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (kept := tmp_path / "box/.basin/runs/head").mkdir(parents=True)
    (kept / "x.jsonl").write_bytes(whole)
    (kept / "x.run").write_text(json.dumps({"uri": "http://127.0.0.1:1", "run_id": "a" * 32, "sent": {}}), encoding="utf-8")

    def one(draw: Random, place: Path) -> bool:
        monkeypatch.chdir(place)
        before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        arrived = mirror.mirror(Path(".basin/runs/head/x.jsonl"))
        after = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        aside = {path.with_suffix(".headless"): content for path, content in before.items() if path.suffix == ".jsonl"}
        assert after == {} if arrived else after in (before, aside)
        return any(content == whole for content in after.values())

    examine(examples, tmp_path / "box", one, caplog)


@cases
def test_any_input_of_score(examples, tmp_path, caplog):
    """A row for every image file, of a class or of a problem."""
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM"):
        Image.effect_mandelbrot((8, 8), (-2, -1, 1, 1), 20).save(tmp_path / f"photos/x.{kind.lower()}", kind)
    model = classifier().eval()

    def one(draw: Random, place: Path) -> bool:
        table = place.with_name("scores.csv")
        assert scoring.score(model, place, [1, 8, 8], list("0123456789"), table, draw.random() < 0.5)[0] == 7
        rows = table.read_text(encoding="utf-8").splitlines()
        assert len(rows) == 8 and rows[0] == "file,class,probability,problem"
        return all(row.endswith(",") for row in rows[1:])

    examine(examples, tmp_path / "photos", one, caplog)
