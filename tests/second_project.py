"""Another project's program. It has what the version's requirements.txt names, and of this repository nothing: no checkout, no path to it.

    python second_project.py models:/digits-linf-0.15@champion

Prints, as JSON, what the registry recorded of the version and what the version computes here: its clean accuracy, and its predictions at
ten adversarial images.
"""

import csv
import json
import sys
from pathlib import Path

import mlflow
import numpy as np
from safetensors.numpy import load_file

uri = sys.argv[1]
model = mlflow.pyfunc.load_model(uri)
import basin  # noqa: E402  the version's own

name, _, alias = uri.removeprefix("models:/").partition("@")
client = mlflow.MlflowClient()
version = client.get_model_version_by_alias(name, alias)
metrics = {metric.key: metric.value for metric in client.get_logged_model(version.source.removeprefix("models:/")).metrics}
outcomes = sorted(Path(mlflow.artifacts.download_artifacts(uri)).rglob("outcomes.csv"))[0]
rows = list(csv.DictReader(outcomes.open()))
images = load_file(outcomes.with_name("adversarial.safetensors"))
labels = np.array([int(row["label"]) for row in rows])
ten = [at for at, row in enumerate(rows) if row["attack"] not in ("", "clean")][:10]
predicted = model.predict(images["clean"]).argmax(1)
print(
    json.dumps(
        {
            "code": basin.__file__,
            "modules": sorted(name for name in ("dvc", "prefect", "foolbox", "typer", "torchvision") if name in sys.modules),
            "n": len(rows),
            "clean": {"recorded": metrics["clean"], "computed": float((predicted == labels).mean())},
            "clean predictions": {"recorded": [int(row["clean"]) for row in rows], "computed": predicted.tolist()},
            "adversarial": {
                "recorded": [int(rows[at]["adversarial"]) for at in ten],
                "computed": model.predict(images["images"][ten]).argmax(1).tolist(),
            },
        }
    )
)
