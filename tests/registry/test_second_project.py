"""A project outside the checkout, in an environment of its own, gets the numbers that the registry recorded."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import mlflow
import pytest
from test_registry import MODELS, NAME, digests, workspace  # noqa: F401

from basin.config import params
from basin.registry import making, registration

ROOT = Path(__file__).parents[2]
FLAGS = [line[3:] for line in (ROOT / "docs/flags.md").read_text().splitlines() if line.startswith("## ")]
UV = Path(sys.executable).parent / "uv"


def test_a_version_names_every_library_that_its_code_imports():
    """What pyfunc.py and any part of a classifier import, directly or not."""
    graph, parts = grimp.build_graph("basin"), ("basin.methods.heads", "basin.methods.backbones", "basin.methods.purifiers")
    code = {"basin.registry.pyfunc"} | {module for part in parts for module in graph.find_descendants(part)}
    code |= {above for module in code for above in graph.find_upstream_modules(module)}
    imported = set()
    for module in code:
        path = ROOT / "pipeline" / (module.replace(".", "/") + ".py")
        for node in ast.walk(ast.parse((path if path.exists() else path.with_suffix("") / "__init__.py").read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported |= {
                    name.split(".")[0]
                    for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
                }
    brought = {"PIL": "pillow", "pydantic_core": "pydantic"}
    needed = {brought.get(name, name) for name in imported - set(sys.stdlib_module_names) - {"basin"}}
    brought_by_timm = {"huggingface_hub"}
    assert needed - brought_by_timm <= set(making.libraries({"backbone": {"kind": "distribution", "of": {"kind": "timm"}}}))
    assert "timm" not in making.libraries({"backbone": {"kind": "resnet"}})


@pytest.mark.slow
def test_another_project_reproduces_a_version(workspace, tmp_path_factory, monkeypatch, capsys):  # noqa: F811
    run = tmp_path_factory.mktemp("run")
    shutil.copytree(workspace, run, dirs_exist_ok=True)
    text = (
        (run / "params.yaml")
        .read_text()
        .replace("channels: [2], hidden: 8", "channels: [8], hidden: 32")
        .replace("epochs: 1,", "epochs: 20,")
    )
    (run / "params.yaml").write_text(f"{text}\nregistry: {{gate: {{accepted_flags: {json.dumps(FLAGS)}}}}}\n")
    stages = os.environ | {"PYTHONPATH": str(ROOT), "BASIN_TRACKING": "off"}
    for stage in ("backbone natural", "head ode", *(f"attack {model} short" for model in MODELS)):
        subprocess.run([sys.executable, "-m", *f"basin.stages.{stage}".split()], cwd=run, env=stages, check=True, capture_output=True)
    monkeypatch.chdir(run)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    registration.register_all(params.load(), digests())

    elsewhere, uri = tmp_path_factory.mktemp("elsewhere"), f"sqlite:///{run}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    needed = mlflow.artifacts.download_artifacts(f"models:/{NAME}@champion/requirements.txt")
    subprocess.run([UV, "venv", "-q", "--python", sys.executable, elsewhere / "venv"], check=True)
    subprocess.run([UV, "pip", "install", "-q", "--python", elsewhere / "venv", "-r", needed], check=True)
    shutil.copyfile(ROOT / "tests" / "second_project.py", elsewhere / "second_project.py")
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean |= {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    program = [elsewhere / "venv/bin/python", "second_project.py", f"models:/{NAME}@champion"]
    done = subprocess.run(program, cwd=elsewhere, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["code"].startswith(str(ROOT)) and found["modules"] == []
    assert found["clean"]["recorded"] == found["clean"]["computed"] > 0.2, "an untrained one would do as well otherwise"
    assert found["clean predictions"]["recorded"] == found["clean predictions"]["computed"]
    assert len(found["adversarial"]["recorded"]) == 10 and found["adversarial"]["recorded"] == found["adversarial"]["computed"]
    with capsys.disabled():
        print(f"\nclean accuracy {found['clean']['computed']} of {found['n']}, and ten adversarial predictions, as recorded")
