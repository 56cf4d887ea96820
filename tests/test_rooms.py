"""The house: few rooms, imports one way, no circles, signs on the doors, and a picture in the docs that is the contract's."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
BASIN = ROOT / "pipeline/basin"
ROOMS = sorted(path.name for path in BASIN.iterdir() if path.is_dir() and path.name != "__pycache__")
LOOSE = sorted(path.stem for path in BASIN.glob("*.py") if path.stem != "__init__")


def layers() -> list[set[str]]:
    """The contract of import-linter, from the top: names of rooms and loose modules, layer by layer."""
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    return [{name.strip().removeprefix("basin.") for name in layer.split("|")} for layer in contract["layers"]]


def test_about_a_dozen_rooms_in_at_most_eight_layers_and_few_loose_modules():
    assert 10 <= len(ROOMS) <= 14 and len(LOOSE) <= 8
    assert {name for layer in layers() for name in layer} == {*ROOMS, *LOOSE}
    assert sum(bool(layer & set(ROOMS)) for layer in layers()) <= 8


@pytest.mark.parametrize("room", ROOMS)
def test_a_rooms_door_says_in_three_lines_what_it_is_for_and_runs_nothing(room):
    (sign,) = ast.parse((BASIN / room / "__init__.py").read_text(encoding="utf-8")).body
    text = ast.literal_eval(sign.value).strip().splitlines()
    assert len(text) == 3 and re.search(r"Start with [\w./]+\.py", text[-1])
    (start,) = re.findall(r"Start with ([\w/]+\.py)", text[-1])
    assert (BASIN / room / start).is_file()


def test_no_file_imports_itself_by_way_of_others():
    graph = grimp.build_graph("basin", cache_dir=None)
    TopologicalSorter({module: graph.find_modules_directly_imported_by(module) for module in graph.modules}).prepare()  # raises on a circle


def test_the_picture_of_the_rooms_is_the_contract():
    """docs/architecture.md draws one row a layer and one box a room."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (picture,) = re.findall(r"```mermaid\nblock-beta\n(.*?)```", page, re.S)
    rows = [set(re.findall(r"(\w+)\[", row)) for row in picture.splitlines() if "[" in row]
    assert rows == [layer for layer in layers() if layer & {*ROOMS}] + [set(LOOSE)]


LIGHT = {
    "basin": ("torch", "mlflow", "prefect", "dvc", "scipy", "numpy"),
    "basin.config.params": ("torch", "mlflow", "prefect", "dvc", "scipy", "numpy"),
    "basin.cli.app": ("torch", "mlflow", "prefect", "dvc", "scipy", "numpy"),
    "basin.stages.entry": ("torch", "mlflow", "prefect", "dvc", "scipy", "numpy"),
    "basin.report.writing": ("torch", "mlflow", "prefect", "dvc", "scipy"),
    "basin.repro.graph": ("torch", "mlflow", "prefect", "scipy"),
    "basin.registry.lookup": ("torch", "prefect", "torchvision", "sklearn"),
    "basin.registry.upkeep": ("torch", "prefect", "torchvision", "sklearn"),
    "basin.evaluation.robustness": ("torch._dynamo", "sympy", "scipy", "mlflow", "prefect", "dvc", "torchvision", "torchdiffeq", "sklearn"),
    "basin.stages.train": ("torch._dynamo", "sympy", "scipy", "mlflow", "prefect", "dvc", "torchvision", "torchdiffeq", "sklearn"),
}


@pytest.mark.parametrize("module", LIGHT)
def test_what_a_module_does_not_need_is_not_loaded(module):
    code = f"import sys, {module}; print([name for name in {LIGHT[module]} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_nothing_is_decided_by_a_clock_that_can_be_set():
    """Locks, leases and patience go by the monotonic clock; these five uses are of the other, and what they write decides nothing."""
    names = r"time\.time\b|time_ns|datetime.now|st_mtime|st_ctime|getmtime|localtime|gmtime|utcnow"
    read = {str(path.relative_to(BASIN)): re.findall(names, path.read_text(encoding="utf-8")) for path in sorted(BASIN.rglob("*.py"))}
    assert {path: found for path, found in read.items() if found} == {
        "flow/progress.py": ["st_mtime"],  # which checkpoint a progress bar shows
        "registry/versions.py": ["time.time"],  # a number is newer than those before it (test_registry.py)
        "tracking/parent.py": ["time_ns"],  # the name of a journal
        "tracking/journal.py": ["time.time", "time_ns"],  # times that MLflow shows; the name of a journal
    }


def test_every_run_is_checked_without_what_computes(tmp_path):
    code = "import sys; from basin.config import params; [params.load(one) for one in sys.argv[1:]]; print('torch' in sys.modules)"
    runs = [str(path) for path in sorted((ROOT / "params").glob("*.yaml"))]
    assert subprocess.run([sys.executable, "-c", code, *runs], capture_output=True, text=True, check=True).stdout == "False\n"
