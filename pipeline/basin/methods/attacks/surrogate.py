"""Surrogate (Papernot et al. 2017, arXiv 1602.02697). Black-box: a net that is taught the network's answers near the images is attacked.

For a network whose gradient is missing and whose answers still say something. In rounds:

    F      a small net, fitted to the standardised answers z(x) of all points asked so far, by squared error
    x'     projected gradient descent on the margin of F, from the image
    ask    z(x'), and z at random points of the ball around it: they join the points

The paper adds points along the Jacobian of F; here they are the candidates themselves, so that F is best where it is attacked. An image
that is broken is asked about no further. 1 + rounds x (points + 1) queries an image.
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from basin.config.settings import Settings
from basin.models.pooling import means
from basin.randomness import construct
from basin.threat.target import Target, gradient, margin
from basin.types import Images, Labels, Logits

BLACK_BOX = True
SIDE = 32  # pixels: larger images are shown to the surrogate as means over their parts
EPOCHS, BATCH, RATE = 30, 256, 3e-3  # of a fit: seconds on a CPU


class Params(Settings):
    rounds: int = Field(4, ge=1, description="a positive number of fits, each after asking at what the one before found")
    points: int = Field(20, ge=1, description="a positive number of random points of the ball asked around each image in a round")
    steps: int = Field(20, ge=1, description="a positive number of gradient steps on the surrogate")
    width: int = Field(128, ge=1, description="the positive width of the surrogate's two hidden layers")


class Surrogate(nn.Module):
    """[n, c, h, w] -> [n, classes]: two hidden layers on the pixels."""

    def __init__(self, shape: torch.Size, classes: int, width: int):
        super().__init__()
        self.side = min(SIDE, shape[2]), min(SIDE, shape[3])
        pixels = shape[1] * self.side[0] * self.side[1]
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
        )

    def forward(self, x: Images) -> Logits:
        return self.layers(means(x, self.side) - 0.5)


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    threat, best = target.threat, target.incumbent(images)
    asked: list[tuple[Images, Logits]] = []

    def ask(x: Images, rows: Tensor) -> None:
        with torch.no_grad():
            z = target.network(x)
        best.offer(x, z, labels[rows], rows)
        asked.append((x, z))

    x = images.clone()
    ask(images, torch.arange(len(images), device=images.device))
    for _ in range(params.rounds):
        for _ in range(params.points):
            if len(rows := (~best.broken).nonzero().flatten()):
                around = x[rows] + threat.random_point(images[rows], generator) - images[rows]
                ask(threat.project(around, images[rows]), rows)
        if not len(rows := (~best.broken).nonzero().flatten()):
            break
        points, answers = zip(*asked)
        net = _fitted(params, torch.cat(points), torch.cat(answers), generator)
        x[rows] = _descended(params, net, target, images[rows], labels[rows])
        ask(x[rows], rows)
    return best.points


def _fitted(params: Params, x: Images, z: Logits, generator: torch.Generator) -> Surrogate:
    """F, fitted to all points that were asked."""
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    with construct(seed, "surrogate"):
        net = Surrogate(x.shape, z.shape[1], params.width).to(x.device)
    wanted = (z - z.mean(1, keepdim=True)) / z.std().clamp_min(torch.finfo(z.dtype).tiny)
    optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
    with torch.enable_grad():
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(x), generator=generator, device=generator.device).to(x.device).split(BATCH):
                optimiser.zero_grad()
                mse_loss(net(x[rows]), wanted[rows]).backward()
                optimiser.step()
    return net.requires_grad_(False)


def _descended(params: Params, net: Surrogate, target: Target, images: Images, labels: Labels) -> Images:
    """The last iterate of projected descent on F's margin, from the images."""
    x, threat = images, target.threat
    for _ in range(params.steps):
        g, _, _ = gradient(net, x, labels, margin)
        x = threat.project(threat.ascend(x, -g, 2.5 / params.steps), images)
    return x
