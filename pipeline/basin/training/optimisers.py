"""Adam and SGD of `torch.optim`, without torch's compiler.

Their methods are decorated so that the compiler leaves them alone, and for that the first call of one loads `torch._dynamo` with sympy:
two seconds of every stage that trains. What the decorators wrap is reached by the way `functools.wraps` has for it, and computes the same.
"""

from inspect import unwrap

import torch
from torch.optim import Optimizer


class _Uncompiled(Optimizer):
    add_param_group = unwrap(Optimizer.add_param_group)
    load_state_dict = unwrap(Optimizer.load_state_dict)
    state_dict = unwrap(Optimizer.state_dict)
    zero_grad = unwrap(Optimizer.zero_grad)


class Adam(_Uncompiled, torch.optim.Adam):
    """Kingma & Ba 2015 (arXiv 1412.6980), with torch's arguments."""

    step = torch.no_grad()(unwrap(torch.optim.Adam.step))


class SGD(_Uncompiled, torch.optim.SGD):
    """Stochastic gradient descent, with torch's arguments."""

    step = torch.no_grad()(unwrap(torch.optim.SGD.step))
