"""What a verdict costs: the ready-made suites, with and without shortcuts, and single public attacks, on the models of finished runs.

    python -m benchmarks.verdicts RUN/models/STAGE/NAME ... [--images 300] [--seeds 0 1 2] [--suites quick,standard] [--thorough]
        [--folder docs/results]

A model lies in a run's folder, whose params.yaml says the threat and whose data/prepared holds the images. Every suite and AutoAttack's
`standard` by its authors judge the same images; seconds are of the processor, one thread, in one process one after the other. Every
point is judged by the reported float32 function. `peers` stands for the public attacks that are quicker than AutoAttack, ours of them, in
float32 on every image that holds. With several seeds of what the attacks draw a row has the means over them, and how many images each left.
Puts the table in the place of the first one of docs/results/verdicts.md, and writes verdicts.csv, as it goes: of what that holds already, a
model that is measured again gives way, the others stay.
"""

import argparse
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basin.config import params
from basin.config.suite import READY, Suite, ready
from basin.data.splits import load_split
from basin.errors import Mistake
from basin.evaluation.interval import wilson
from basin.evaluation.robustness import QUICK, evaluate
from basin.models import artifact
from basin.threat.ball import ThreatModel
from benchmarks import as_command, read_csv, write_csv
from benchmarks.methods import put

log = logging.getLogger(__name__)
REFERENCE = "autoattack"
_PMA, _TARGETED = {"kind": "pma"}, {"kind": "apgd", "loss": "dlr_targeted"}
PEERS: dict[str, dict[str, Any]] = {  # with the settings that our kinds have by themselves
    "A3": {"a3": {"kind": "a3"}},
    "PMA": {"pma": _PMA},
    "MALT": {"apgd_nearest": _TARGETED | {"order": "nearest"}},
    "PMA+": {"pma": _PMA, "apgd_targeted": _TARGETED},
}
FIELDS = (
    "model", "seed", "data", "norm", "eps", "n", "suite", "thorough", "robust", "low", "high", "left", "seconds", "passes", "times",
    "other", "search", "flags",
)  # fmt: skip


def rows(place: Path, images: int, seeds: list[int], suites: list[str], both: bool) -> Iterator[dict[str, Any]]:
    """A row a suite; `times` says how much less time it took than AutoAttack, `other` of how many images the two say otherwise."""
    run = place.parents[2]
    asked = params.load(run / "params.yaml")
    test = load_split(run / "data/prepared", "test")
    if len(test) < images:
        raise Mistake(f"--images: {run} has only {len(test)} test images (got {images}). Ask for fewer.")
    x, y = test.floats(slice(0, images)), test.labels[:images]
    model, twin, ball = artifact.load(place).requires_grad_(False).eval(), artifact.load_twin(place), ThreatModel.of(asked.threat)
    about = {"model": f"{place.parent.name}/{place.name}", "seed": asked.seed, "data": asked.source.kind}
    about |= {"norm": ball.norm, "eps": ball.eps, "n": images}
    reference: tuple[float, Tensor] | None = None
    for name, thorough in [(REFERENCE, False), *((suite, thorough) for suite in suites for thorough in (False, True)[: 1 + both])]:
        suite, began = _suite(name, thorough), time.process_time()
        found = [evaluate(model, twin, x, y, ball, suite, (seed, name)) for seed in seeds]
        seconds = (time.process_time() - began) / len(seeds)
        shares = torch.stack([one.outcomes.share for one in found])
        reference = reference or (seconds, shares)
        held, (low, high) = shares.sum(1), wilson(float(shares.mean(0).sum()), images)
        row = about | {"suite": name, "thorough": int(thorough), "robust": held.mean().item() / images, "low": low, "high": high}
        row |= {"left": " ".join(f"{one:g}" for one in held.tolist()), "seconds": round(seconds, 1)}
        row |= {"passes": sum(one.outcomes.passes for one in found) / len(seeds), "times": round(reference[0] / seconds, 1)}
        row |= {"other": (shares != reference[1]).sum().item() / len(seeds), "search": int(QUICK in found[0].facts)}
        yield row | {"flags": ", ".join(dict.fromkeys(flag for one in found for flag in one.flags))}


def _suite(name: str, thorough: bool) -> Suite:
    return Suite.model_validate({"attacks": PEERS[name], "thorough": True}) if name in PEERS else ready(name, Suite(thorough=thorough))


def _of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("model", "seed", "data", "norm", "eps", "n"))


def page(table: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| model | suite | robust | left | seconds | times less | passes an image | otherwise | bf16 | flags |", "|" + "---|" * 10]
    return "\n".join(lines + [_line(row) for row in table]) + "\n"


def _line(row: Mapping[str, Any]) -> str:
    suite = row["suite"] + ", thorough" * row["thorough"]
    robust = f"{100 * row['robust']:.2f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    model = f"{row['model']}, {row['data']}, seed {row['seed']}, {row['norm']} {row['eps']:g}, n = {row['n']}"
    cells = (model, suite, robust, row["left"], row["seconds"], row["times"], round(row["passes"] / row["n"]), f"{row['other']:g}")
    return f"| {' | '.join(map(str, cells))} | {'yes' if row['search'] else ''} | {row['flags'] or ''} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdicts", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, help="model folders of runs: RUN/models/STAGE/NAME")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of what the attacks draw")
    parser.add_argument("--suites", default="quick,standard,adaptive,peers", help=f"of {', '.join([*READY, *PEERS, 'peers'])}")
    parser.add_argument("--thorough", action="store_true", help="each suite without shortcuts too")
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    names = [one for name in asked.suites.split(",") for one in (PEERS if name == "peers" else [name])]
    if unknown := [name for name in names if name not in {*READY, *PEERS}]:
        raise Mistake(f"--suites: no such suite (got {unknown[0]!r}). Known: {', '.join([*READY, *PEERS, 'peers'])}.")
    table = read_csv(asked.folder / "verdicts.csv")
    for place in asked.models:
        found: list[dict[str, Any]] = []
        for row in rows(place.resolve(), asked.images, asked.seeds, names, asked.thorough):
            found.append(row)
            log.info("%(model)s %(suite)s: %(robust).4f in %(seconds)s s, %(passes)s passes, %(times)s times less", row)
            shown = [one for one in table if _of(one) != _of(row)] + found
            write_csv(asked.folder / "verdicts.csv", FIELDS, shown)
            put(page(shown), asked.folder / "verdicts.md")
        table = shown


if __name__ == "__main__":
    as_command(main)
