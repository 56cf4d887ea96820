"""The mean of the weights over training, in place of the last ones.

    ema    w_t = beta w_{t-1} + (1 - beta) theta_t after every step, over 1 - beta^t: the first weights do not count for more
    swa    w_t = mean of theta at the ends of the last epochs (Izmailov et al. 2018, arXiv 1803.05407)

Both are w <- w + c_t (theta_t - w), with c_t = (1 - beta) / (1 - beta^t) or 1 / t. The statistics of batch normalisation belong to the
weights that they were measured with: those of the mean are measured on all training images, as they are.

torch.optim.swa_utils does not serve: it copies the module, which one that holds a generator does not allow, and its `update_bn` measures
the statistics of a backbone that is not trained as well.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from basin.config.schedule import Average
from basin.data.splits import Split
from basin.randomness import drawing, generator


class Mean:
    """The mean of some parameters, of which `count` weights are so far; without an `average`, always of none."""

    def __init__(self, average: Average | None, parameters: Sequence[nn.Parameter]):
        self.average, self.count = average, 0
        self.parameters = parameters if average else []
        self.weights = [parameter.detach().clone() for parameter in self.parameters]

    def after_step(self) -> None:
        if self.average and self.average.kind == "ema":
            beta = self.average.decay
            self._add((1 - beta) / (1 - beta ** (self.count + 1)))

    def after_epoch(self, epoch: int, epochs: int) -> None:
        """`epoch` counts from 0."""
        if self.average and self.average.kind == "swa" and epoch >= int(self.average.start * epochs):
            self._add(1 / (self.count + 1))

    @torch.no_grad()
    def _add(self, share: float) -> None:
        for mean, parameter in zip(self.weights, self.parameters):
            mean.lerp_(parameter, share)
        self.count += 1

    @contextmanager
    def in_place(self, model: nn.Module, settle: Callable[[], None]) -> Iterator[None]:
        """Give `model` the mean weights and `settle` it on them, then its own state back. While the mean is of none, nothing."""
        if not self.count:
            yield
            return
        own = copied(model)
        with torch.no_grad():
            for mean, parameter in zip(self.weights, self.parameters):
                parameter.copy_(mean)
        settle()
        yield
        model.load_state_dict(own)

    def state(self) -> dict[str, Tensor]:
        return {"count": torch.tensor(self.count)} | {str(i): mean for i, mean in enumerate(self.weights)}

    def load(self, state: dict[str, Tensor]) -> None:
        self.count = int(state["count"])
        for i, mean in enumerate(self.weights):
            mean.copy_(state[str(i)])


def copied(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model as they are now."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def measure_statistics(model: nn.Module, trained: Sequence[nn.Module], train: Split, batch: int) -> None:
    """Give the batch normalisations inside `trained` the statistics of all training images: the mean over batches of one size, at most
    `batch`, within an image; of two at least, because a single one may have no variance."""
    layers = [layer for module in trained for layer in module.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    device = next(model.parameters()).device
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # each batch counts the same
        layer.train()
    with drawing(model, generator(0, "statistics", device=device)):
        parts = max(1, min(-(-len(train) // batch), len(train) // 2))
        for rows in torch.arange(len(train)).tensor_split(parts) if layers else ():
            model(train.floats(rows).to(device))
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum
        layer.eval()
