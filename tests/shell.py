"""Commands as a person gives them in a folder, of this environment."""

import os
import subprocess
import sys
from pathlib import Path


def do(folder: Path, *words: str, **environment: str) -> str:
    """What a command says; it has to end well."""
    here = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "BASIN_CHECKPOINTS", "PYTHONPATH")}
    here |= {"CUDA_VISIBLE_DEVICES": "", "DVC_NO_ANALYTICS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{here['PATH']}"}
    done = subprocess.run(words, cwd=folder, env=here | environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


def git(folder: Path, *words: str) -> str:
    return do(folder, "git", "-c", "user.name=n", "-c", "user.email=e@example.org", *words)
