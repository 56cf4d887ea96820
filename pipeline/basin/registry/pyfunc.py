"""What runs when a version is loaded from the registry: the model folder, as MLflow's "model from code". Nothing is unpickled.

model = mlflow.pyfunc.load_model("models:/digits-linf-0.15@champion")
logits = model.predict(images)                              # float32 [n, c, h, w] in [0, 1] -> float32 [n, classes]
shares = model.predict(images, params={"output": "probabilities"})
classifier = model.unwrap_python_model().classifier         # the torch module, for attacks

The same behind `mlflow models serve` (docs/serving.md). It imports nothing of basin.registry, which needs more than a version lists.
"""

import json
import logging
import sys
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

from basin.errors import Mistake, did_you_mean
from basin.models import artifact
from basin.registry import serving

REQUEST = ("inputs", "instances", "dataframe_split", "dataframe_records", "params")
SHOWN = 3  # names of changed files in a warning
log = logging.getLogger(__name__)


def _changed(saved: dict[str, str], current: dict[str, str]) -> str:
    """Which source files are not what they were, in a line."""
    if saved == current:
        return ""
    if not saved.keys() & current.keys():
        return f"its files were laid out otherwise, as {min(saved, default='none')}"
    changed = sorted(path for path in saved | current if saved.get(path) != current.get(path))
    return ", ".join(changed[:SHOWN]) + (f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else "")


class Refused(MlflowException, Mistake):
    """A wrong request: to a person a Mistake, over HTTP a 400 with the reason."""

    def __init__(self, *messages: str):
        super().__init__("\n".join(messages), INVALID_PARAMETER_VALUE)
        self.reason = self.message


class RegisteredClassifier(PythonModel):
    """Computes on the device of `model_config={"device": "cuda"}`, else on the CPU."""

    def load_context(self, context: Any) -> None:
        self.device = (context.model_config or {}).get("device", "cpu")
        self.classifier = artifact.load(context.artifacts["model"], self.device)
        self.twin = artifact.load_twin(context.artifacts["model"], self.device)
        self.lock = threading.Lock()  # the server answers in threads, and a pass changes the model while it lasts
        recipe = self.classifier.recipe
        self.shape = tuple(recipe["shape"])
        if changed := _changed(recipe["sources"], artifact.sources(self.classifier)):
            log.warning("%s: computed by other source code than it was trained with: %s", recipe["model"], changed)
        _answer_in_words()

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        try:
            asked = serving.Asked.read(params or {})
            images = torch.from_numpy(self._checked(serving.read(model_input, self.shape))).to(self.device)
            with self.lock:
                return serving.answer(self.classifier, images, asked).cpu().numpy()
        except Mistake as mistake:
            raise Refused(*mistake.messages) from None

    def _checked(self, images: Any) -> np.ndarray:
        """The images, contiguous. Raises Mistake where they are no float32 [n, c, h, w] in [0, 1]."""
        wanted = f"Give a float32 array [n, {', '.join(map(str, self.shape))}] with values in [0, 1]."
        if not isinstance(images, np.ndarray) or images.dtype != np.float32:
            raise Mistake(f"images: not a float32 array (got {getattr(images, 'dtype', type(images).__name__)}). {wanted}")
        if images.ndim != 4 or images.shape[1:] != self.shape:
            raise Mistake(f"images: wrong shape (got {list(images.shape)}). {wanted}")
        if images.size and not (images.min() >= 0 and images.max() <= 1):  # so written that NaN is refused
            raise Mistake(f"images: values outside [0, 1] (got {images.min():.4g} to {images.max():.4g}). {wanted}")
        return np.ascontiguousarray(images)


def _answer_in_words() -> None:
    """Where MLflow's scoring server has loaded this model, put `_in_words` around what answers its requests.

    By itself it ignores a misspelt param, fails with 500 on a request without a content type and on deeply nested JSON, and sends
    tracebacks for CSV and parquet that it cannot read.
    """
    server: Any = sys.modules.get("mlflow.pyfunc.scoring_server")
    if "mlflow.pyfunc.scoring_server.app" in sys.modules and server and not hasattr(server.invocations, "__wrapped__"):
        server.invocations = _in_words(server.invocations)


def _in_words(invocations: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(invocations)
    def answered(data: Any, content_type: str | None, *model: Any) -> Any:
        try:
            content_type = content_type or ""
            request = _request(data) if content_type.startswith("application/json") else data
            return invocations(request, content_type, *model)
        except Refused as refused:
            refused.message = refused.reason  # MLflow has put the whole request in front of it
            raise
        except MlflowException as error:
            if trace := error.json_kwargs.pop("stack_trace", None):
                log.error(trace)
            raise

    return answered


def _request(data: bytes) -> dict[str, Any]:
    """A JSON request, a dataframe of one column as the list of its cells. Raises Refused on one that nobody would understand."""
    try:
        request = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(f"request: not JSON (got {error}). Give e.g. {{'inputs': images}}.") from None
    if not isinstance(request, dict):
        raise Refused(f"request: not a JSON object (got a {type(request).__name__}). Give e.g. {{'inputs': images}}.")
    for known, keys in ((REQUEST, request), (serving.Asked.model_fields, request.get("params"))):
        for key in keys if isinstance(keys, dict) else ():
            if key not in known:
                raise Refused(f"request: unknown key (got {key!r}). {did_you_mean(key, known)}")
    return _cells(request)


def _cells(request: dict[str, Any]) -> dict[str, Any]:
    """MLflow takes no images in the cells of a dataframe, only rows of numbers."""
    match request:
        case {"dataframe_split": {"data": [*rows]}} if all(isinstance(row, list) and len(row) == 1 for row in rows):
            cells = [row[0] for row in rows]
        case {"dataframe_records": [*rows]} if all(isinstance(row, dict) and len(row) == 1 for row in rows):
            cells = [cell for row in rows for cell in row.values()]
        case _:
            return request
    return {"inputs": cells, "params": request.get("params")}


set_model(RegisteredClassifier())
