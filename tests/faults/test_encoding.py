"""Text is UTF-8 whatever the locale: no file is opened, and no program's words are read, in the locale's encoding."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from basin.errors import Mistake

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("pipeline", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
OTHERS = ("Image", "tarfile", "webbrowser", "run", "self", "os")  # `open` of theirs is of no text file
PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def in_the_locale(call: ast.Call) -> bool:
    """Whether a call opens text, or reads a program's words, without saying in which encoding."""
    words = {word.arg: word.value for word in call.keywords}
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("run", "Popen", "check_output") and {"text", "universal_newlines"} & words.keys():
        return "encoding" not in words
    if name == "open":
        owner = getattr(getattr(call.func, "value", None), "id", "")
        modes = [one.value for one in [*call.args, *words.values()] if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        return owner not in OTHERS and not any("b" in mode for mode in modes) and "encoding" not in words
    return name in ("read_text", "write_text") and "encoding" not in words


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_says_its_encoding(source):
    found = [call.lineno for call in ast.walk(ast.parse(source.read_bytes())) if isinstance(call, ast.Call) and in_the_locale(call)]
    assert found == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("open('x')", True), ("path.open('w')", True), ("path.open('rb')", False), ("path.read_text()", True),
        ("path.open(encoding='utf-8')", False), ("run(['git'], text=True)", True), ("run(['git'], encoding='utf-8')", False),
    ],
)  # fmt: skip
def test_what_the_test_above_looks_for(code, expected):
    assert in_the_locale(ast.parse(code).body[0].value) is expected


PARAMS = """# Größe und Maß: ε = 0.15
seed: 0
data: {kind: digits}
threat: {norm: linf, eps: 0.15}
backbone: {natural: {backbone: {kind: convnet, channels: [2], hidden: 4}, training: {kind: natural}, schedule: {epochs: 1}}}
suites: {short: {attacks: {fgsm: {kind: fgsm}}}}
attack: {models: [backbone/natural], suites: [short], images: 10}
"""


@pytest.mark.slow
def test_a_run_under_a_locale_without_utf_8(tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS, encoding="utf-8")
    environment = {**os.environ, **PLAIN, "BASIN_TRACKING": "off"}
    for stage in (["prepare"], ["backbone", "natural"], ["attack", "backbone/natural", "short"], ["report"]):
        command = [sys.executable, "-m", f"basin.stages.{stage[0]}", *stage[1:]]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert not page.isascii()
    basin = [sys.executable, "-c", "from basin.cli.app import main; main()"]
    for words in (
        ["check"],
        ["evaluate", "models/backbone/natural", "--data", "data/prepared", "--eps", "0.1", "--suite", "quick", "--images", "5"],
    ):
        done = subprocess.run([*basin, *words], cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()


def test_what_no_stream_takes_is_said_as_its_number():
    assert str(Mistake("x: odd (got '\ud800'). Mend it.")) == "x: odd (got '\\ud800'). Mend it."
