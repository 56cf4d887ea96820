"""What can be measured of a classifier's flows at the features of given images."""

import torch
from torch import nn

from pipeline.ode import STABILITY_LIMIT, Flow, flows
from pipeline.types import Features, Images


def starts(classifier: nn.Module, images: Images) -> list[tuple[Flow, Features]]:
    """Each flow inside the classifier with its z(0) for these images; `nfe` of each flow is that of this solve."""
    seen: list[tuple[Flow, Features]] = []
    hooks = [flow.register_forward_pre_hook(lambda flow, z: seen.append((flow, z[0].detach()))) for flow in flows(classifier)]
    try:
        with torch.no_grad():
            classifier(images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def stiffness(flow: Flow, z: Features) -> float:
    """h |lambda|_max of the drift's Jacobian over the rows of z, h the fixed step."""
    largest = torch.linalg.eigvals(flow.jacobian(z).detach().cpu()).abs().max().item()
    return largest * flow.T / flow.solver.steps


def is_unstable(flow: Flow, stiffness: float) -> bool:
    """Whether the step lies outside its method's stability region on the negative real axis; an adaptive solver chooses its own."""
    return flow.solver.fixed_step and stiffness > STABILITY_LIMIT[flow.solver.method]
