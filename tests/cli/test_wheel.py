"""The installed package beside a user's own code, whose folders have the names that ours have."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NET = """
import torch
from pipeline import layers  # the user's own

def net():
    return layers.make()
"""
LAYERS = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the wheel alone is installed."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    (source / "pipeline").symlink_to(ROOT / "pipeline")
    uv = Path(sys.executable).parent / "uv"
    build = [uv, "build", "-q", "--wheel", "--offline", "--no-build-isolation", "--python", sys.executable, "-o", place / "built", source]
    subprocess.run(build, check=True)
    (built,) = (place / "built").glob("basin-*.whl")
    install = [uv, "pip", "install", "-q", "--offline", "--no-deps", "--target", place / "site", built]
    subprocess.run(install, check=True)
    return place / "site"


def test_the_wheel_holds_basin_alone(wheel: Path):
    assert sorted(path.name for path in wheel.iterdir() if path.is_dir() and path.suffix != ".dist-info") == ["basin", "bin"]
    assert (wheel / "basin/py.typed").is_file() and (wheel / "basin/report/template/page.html").is_file()


def test_a_model_is_evaluated_beside_folders_called_pipeline_and_stages(wheel: Path, tmp_path: Path):
    for folder, code in (("pipeline", LAYERS), ("stages", "raise RuntimeError('not Basin\\'s')")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("" if folder == "pipeline" else code)
        (tmp_path / folder / "layers.py").write_text(code)
    (tmp_path / "net.py").write_text(NET)
    images = (
        "import numpy as np; draw = np.random.default_rng(0)\n"
        "np.savez('d.npz', images=draw.random((40, 1, 4, 4), 'float32'), labels=draw.integers(0, 3, 40))"
    )
    environment = {"PYTHONPATH": str(wheel), "CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    run = [sys.executable, "-c"]
    subprocess.run([*run, images], cwd=tmp_path, env=environment, check=True)
    words = ["evaluate", "net.py:net", "--data", "d.npz", "--eps", "0.1", "--suite", "quick"]
    done = subprocess.run(
        [*run, "import sys; from basin.cli.app import main; main()", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "worst case, 95% interval" in done.stdout
    where = subprocess.run([*run, "import basin; print(basin.__file__)"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert where.stdout.startswith(str(wheel))


def test_from_python_the_same(wheel: Path, tmp_path: Path):
    code = """
import sys, basin
assert 'torch' not in sys.modules
import torch
model = torch.nn.Sequential(torch.nn.AvgPool2d(2), torch.nn.Flatten()).eval()  # the brightest quarter
labels = torch.arange(20) % 4
bright = torch.nn.functional.one_hot(labels, 4).reshape(-1, 1, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
lead = torch.where(torch.arange(20) < 12, 0.5, 0.01).reshape(-1, 1, 1, 1)  # 12 of 20 stand at 8 / 255
x = 0.3 + lead * bright
result = basin.evaluate(model, x, labels, basin.Threat(norm="linf", eps=8 / 255), "quick")
low, high = result.interval
assert 0 < low < result.worst_case == 0.6 < high < 1 and result.clean == 1 and result.flags == [], result
try:
    basin.evaluate(model, 2 * x, labels, basin.Threat(norm="linf", eps=0.1))
except basin.Mistake as mistake:
    print(mistake)
"""
    environment = {"PYTHONPATH": str(wheel), "CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("images: ")
