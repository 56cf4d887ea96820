"""Outcome folders as the attack stage writes them, made up from a latent margin per image; seeded."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sklearn.datasets import load_digits

from basin.evaluation.interval import wilson

SUITES = {"quick": {"fgsm": 0.7, "pgd": 0.92}, "standard": {"apgd_ce": 0.93, "apgd_t": 0.98, "transfer": 1.0, "square": 0.9}}
RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Made:
    """`margin`: median radius, in units of eps, at which an image falls; `masking`: how much stronger the wrong gradient makes it look."""

    model: str
    margin: float
    clean: float = 0.95
    source: str | None = None
    head: str = "linear"
    training: str = "natural"
    masking: float = 0.0
    flags: tuple[str, ...] = ()
    more: dict = field(default_factory=dict)  # overrides keys of summary.json


RUN = (
    Made("backbone/natural", 0.15, 0.985),
    Made(
        "head/sodef_natural",
        0.45,
        0.975,
        "backbone/natural",
        "sodef",
        masking=9.0,
        flags=("gradient-masked", "stiff-solve"),
    ),
    Made("adversarial/pgd", 1.55, 0.955, "backbone/natural", training="pgd"),
    Made("head/sodef_robust", 1.35, 0.96, "adversarial/pgd", "sodef", masking=0.8),
)


def write_run(root: Path, run=RUN, n: int = 200, eps: float = 0.15, seed: int = 0, suites=SUITES) -> tuple[Path, Path]:
    """Write root/outcomes and root/history; returns both."""
    for made in run:
        margins = _margins(made, n, seed)
        for suite, attacks in suites.items():
            write_suite(root / "outcomes", made, suite, attacks, margins, eps, seed)
        write_history(root / "history", made, seed)
    return root / "outcomes", root / "history"


def _draws(*purpose) -> np.random.Generator:
    return np.random.default_rng([sum(map(ord, str(one))) for one in purpose])


def _margins(made: Made, n: int, seed: int) -> np.ndarray:
    draws = _draws(made.model, seed)
    margins = made.margin * np.exp(0.5 * draws.standard_normal(n))
    margins[draws.permutation(n)[: round((1 - made.clean) * n)]] = 0
    return margins


def write_suite(outcomes: Path, made: Made, suite: str, attacks: dict, margins: np.ndarray, eps: float, seed: int) -> None:
    n = len(margins)
    data, draws = load_digits(), _draws(made.model, suite, seed)
    index = 3 * np.arange(n)
    label = data.target[index]
    wrong = (label + draws.integers(1, 10, n)) % 10
    clean = np.where(margins > 0, label, wrong)
    images = (data.images[index, None] / 16).astype(np.float32)
    attack, after = np.where(margins > 0, "", "clean").astype(object), {}
    for name, strength in attacks.items():
        if name == "transfer" and made.source is None:
            continue
        attack[(attack == "") & (margins < strength * np.exp(0.03 * draws.standard_normal(n)))] = name
        after[name] = float((attack == "").mean())
    robust = attack == ""
    delta = np.where(attack == "clean", 0, 1)[:, None, None, None] * eps * np.sign(draws.standard_normal(images.shape))
    points = (images + delta).clip(0, 1).astype(np.float32)
    masked = (margins * (1 + made.masking) > 1).astype(int) if made.masking else None
    distance, loss = np.abs(points - images).max((1, 2, 3)), np.abs(draws.standard_normal(n))
    predicted = np.where(robust, label, wrong)
    rows = zip(
        index, label, clean, predicted, robust.astype(int), attack, distance, loss, [""] * n if masked is None else masked, strict=True
    )
    folder = outcomes / made.model / suite
    folder.mkdir(parents=True)
    with (folder / "outcomes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "label", "clean", "adversarial", "robust", "attack", "distance", "loss", "masked"], *rows])
    save_file({"images": points, "clean": images}, folder / "adversarial.safetensors")
    wrong_gradient = None if masked is None else {"attack": "pgd, adjoint gradient of dopri5", **_share(masked)}
    summary = {
        "model": made.model, "suite": suite, "data": "digits", "data_digest": "3f" * 32, "threat": {"norm": "linf", "eps": eps}, "n": n,
        "clean": float((clean == label).mean()), **_share(robust), "attacks": after, "alone": {name: None for name in after},
        "masked": wrong_gradient, "twin": {"model": made.source, "clean": 0.98, "robust": 0.02} if made.source else None,
        "curve": {"attack": "pgd", "points": [[round(eps * r, 6), float((margins > r).mean())] for r in RADII]},
        "flags": list(made.flags), "passes": 40 * n, "seed": seed, "from": made.source,
        "training": made.training, "head": made.head, "backbone": "convnet",
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary | made.more))
    if made.head == "sodef":
        (folder / "stability.json").write_text(json.dumps({"flows": [stability(draws)]}))


def stability(draws: np.random.Generator, rate: float = 0.3, L: float = 2.0) -> dict:
    """A flow of T = 5 in which distances grow by e^(rate t), give or take a fifth."""
    times = np.linspace(0, 5, 17)
    growth = np.exp(rate * times)
    eigenvalues = np.c_[draws.standard_normal(100) - 0.5, np.abs(draws.standard_normal(100))].round(4)
    numbers = {"nfe": 64.0, "stiffness": 0.4, "left_half_plane": 0.25, "rightmost_median": 0.5, "rightmost_max": 1.5}
    numbers |= {"growth_median": float(growth[-1]), "growth_max": 6.0, "growth_peak": 6.5, "lipschitz": L, "lipschitz_met": 1.9}
    exponents = {"lipschitz": L * times, "lipschitz_met": 1.9 * times, "log_norm": 0.5 * times}
    curves = {"times": times, "lower": growth * 0.8 ** (times > 0), "median": growth, "upper": growth * 1.2 ** (times > 0)}
    trajectories = {"pairs": 60, **_lists(curves), "exponents": _lists(exponents)}
    return {"flow": "head.flow", "T": 5.0, "images": 64, "numbers": numbers, "spectrum": eigenvalues.tolist(), "trajectories": trajectories}


def _lists(curves: dict[str, np.ndarray]) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in curves.items()}


def _share(robust: np.ndarray) -> dict:
    return {"robust": float(robust.mean()), "interval": wilson(int(robust.sum()), robust.size)}


def write_history(history: Path, made: Made, seed: int) -> None:
    draws = _draws(made.model, "history", seed)
    phases = {"features": 4, "stability": 8, "classifier": 4} if made.head == "sodef" else {made.training: 15}
    path = history / f"{made.model}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["phase", "epoch", "loss", "accuracy", "robust"])
        for phase, epochs in phases.items():
            for epoch in range(1, epochs + 1):
                noise = 0.02 * draws.standard_normal()
                loss, accuracy = 2.2 * np.exp(-epoch / 4) + abs(noise), 1 - 0.6 * np.exp(-epoch / 3)
                writer.writerow([phase, epoch, *(f"{value:.4f}" for value in (loss, accuracy, 0.5 + noise))])
