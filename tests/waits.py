"""What makes the host wait for the device, counted on a CPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Counts what hands a tensor's content to the host; `tolist` is that too, and goes past this."""

    names = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero", "masked_select")
    by_index = ("index", "index_put", "index_put_")  # which asks how many are true, where it is given a mask

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        masks = name in self.by_index and any(one is not None and one.dtype == torch.bool for one in arguments[1])
        if masks or name in self.names:
            self.seen.append(str(function))
        return function(*arguments, **(keywords or {}))
