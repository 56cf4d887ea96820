"""The installed package beside a user's own code, whose folders have the names that ours have."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
    for file in (
        "py.typed",
        "report/template/page.html",
        "report/template/figures/glance.json",
        "repro/template/graph.yaml",
        "repro/template/prefect.yaml",
        "repro/template/runs/digits.yaml",
    ):
        assert (wheel / "basin" / file).is_file()


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


@pytest.mark.slow
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


# A project of one's own -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def venv(wheel: Path, tmp_path: Path) -> Path:
    """A fresh virtual environment elsewhere, in which the wheel is installed; its libraries are those of the tests, our checkout is not."""
    place = tmp_path / "venv"
    uv = Path(sys.executable).parent / "uv"
    subprocess.run([uv, "venv", "-q", "--offline", "--python", sys.executable, place], check=True)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    (built,) = wheel.parent.glob("built/basin-*.whl")
    subprocess.run([uv, "pip", "install", "-q", "--offline", "--no-deps", "--python", place / "bin/python", built], check=True)
    return place / "bin"


def photographs(folder: Path) -> None:
    """Three classes of 40 colour images of 64 x 64, and beside them what lies in people's folders."""
    draw = np.random.default_rng(0)
    for tint, name in enumerate(("cats", "dogs", "owls")):
        (folder / name).mkdir(parents=True)
        for number in range(40):
            pixels = draw.integers(0, 90, (64, 64, 3), np.uint8)
            pixels[..., tint] += 100
            Image.fromarray(pixels).save(folder / name / f"{number:02}.jpg")
    (folder / "cats/half.jpg").write_bytes((folder / "cats/01.jpg").read_bytes()[:700])
    (folder / "dogs/empty.png").touch()
    (folder / "owls/notes.txt").write_text("three", encoding="utf-8")
    (folder / "owls/.DS_Store").touch()


@pytest.mark.slow
def test_from_the_wheel_and_a_folder_of_images_to_a_registered_model(venv: Path, tmp_path: Path):
    photographs(tmp_path / "my photographs")
    place = tmp_path / "robust"
    here = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    here |= {"CUDA_VISIBLE_DEVICES": "", "PATH": f"{venv}{os.pathsep}{here['PATH']}"}

    def do(*words: str, code: int = 0, folder: Path = place) -> str:
        done = subprocess.run(words, cwd=folder, env=here, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    said = do("basin", "init", "robust", "--data", "my photographs", "--name", "pets", folder=tmp_path)
    assert "robust: a project. Next: cd robust && basin check && basin repro" in said.splitlines()
    said = do("basin", "check", code=2)
    assert "cats/half.jpg: cannot be read" in said and "dogs/empty.png: cannot be read" in said and "2 of 122 files" in said
    run = (place / "params.yaml").read_text(encoding="utf-8")
    changes = {'"refuse"': "leave_out", "epochs: 15": "epochs: 1", "images: 300": "images: 12", "eps: 8/255": "eps: 4/255"}
    for old, new in changes.items():
        assert old in run
        run = run.replace(old, new)
    (place / "params.yaml").write_text(run, encoding="utf-8")
    assert "data pets: 3 classes, images of shape [3, 64, 64]: 84 train, 12 validation, 24 test" in do("basin", "check")
    said = do("basin", "repro")
    assert said.count("pets, L∞ distance at most 4/255") == 1, "the table, once"
    assert "models:/pets-linf-4_255@champion" in said and "git add" not in said and "dvc exp" not in said, "there is no git here"
    assert (place / "report/index.html").is_file()
    assert "pets-linf-4_255" in do("basin", "models")
    assert do(str(venv / "python"), "-P", "-m", "dvc", "repro").splitlines()[-1] == "Data and pipelines are up to date."
    # An upgrade: what it changes runs again, and what comes of it; the rest stays.
    (page,) = venv.parent.glob("lib/python*/site-packages/basin/report/page.py")
    with page.open("a", encoding="utf-8") as source:
        source.write("# newer\n")
    ran = [line.split("'")[1] for line in do("basin", "repro").splitlines() if line.startswith("Running stage")]
    assert ran == ["exchange", "report", "register"]
