"""What runs when a version is loaded from the registry: the model folder, as MLflow's "model from code". Nothing is unpickled.

model = mlflow.pyfunc.load_model("models:/digits-linf-0.15@champion")
logits = model.predict(images)                              # float32 [n, c, h, w] in [0, 1] -> float32 [n, classes]
classifier = model.unwrap_python_model().classifier         # the torch module, for attacks
"""

import logging
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from pipeline import artifact
from pipeline.errors import Mistake

log = logging.getLogger(__name__)


class RegisteredClassifier(PythonModel):
    """Computes on the device of `model_config={"device": "cuda"}`, else on the CPU."""

    def load_context(self, context: Any) -> None:
        self.device = (context.model_config or {}).get("device", "cpu")
        self.classifier = artifact.load(context.artifacts["model"], self.device)
        recipe = self.classifier.recipe
        self.shape, saved, current = tuple(recipe["shape"]), recipe["sources"], artifact.sources(self.classifier)
        if changed := sorted(path for path in saved | current if saved.get(path) != current.get(path)):
            log.warning("%s: computed by other source code than it was trained with: %s", recipe["model"], ", ".join(changed))

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        with torch.no_grad():
            return self.classifier(torch.from_numpy(self._checked(model_input)).to(self.device)).cpu().numpy()

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


set_model(RegisteredClassifier())
