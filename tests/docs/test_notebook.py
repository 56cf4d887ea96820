"""docs/images_to_model.ipynb: kept without what it showed, and run whole, as a notebook would."""

import json
import os
import subprocess
import sys
import sysconfig

from pages import ROOT

CELLS = json.loads((ROOT / "docs/images_to_model.ipynb").read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
AFTER = "assert len(rows) == 2 and accuracy > 0.8 and 0 <= result.worst_case <= result.clean, (rows, accuracy, result)"


def plain(cell: str) -> str:
    """A cell as Python alone: a line that begins with `!` is a shell's."""
    shell = "__import__('subprocess').run({!r}, shell=True, check=True)"
    return "\n".join(shell.format(line[1:]) if line.startswith("!") else line for line in cell.splitlines())


def test_the_notebook_is_kept_without_what_it_showed():
    assert [cell for cell in CELLS if cell.get("outputs") or cell.get("execution_count")] == []
    assert len(CODE) > 5 and sum(cell.startswith("!basin") for cell in CODE) == 4


def test_the_notebook_leads_from_images_to_a_registered_model(tmp_path):
    here = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "BASIN_TRACKING")}
    here |= {"CUDA_VISIBLE_DEVICES": "", "PATH": os.pathsep.join([sysconfig.get_path("scripts"), here["PATH"]])}
    script = "\n".join([*map(plain, CODE), AFTER])
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "models:/shapes-linf-8_255@champion" in done.stdout and "data shapes: 3 classes, images of shape [3, 32, 32]" in done.stdout
