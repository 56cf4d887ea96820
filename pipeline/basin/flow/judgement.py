"""One model judged, ours or not: what `basin evaluate` does, in a child that a cancel ends."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed, State
from pydantic import Field

from basin.flow import children, pages, places
from basin.flow.reproduction import StagesFailed
from basin.repro import slots
from basin.repro.graph import Stage
from basin.repro.guard import Guards

BASIN = (sys.executable, "-c", "from basin.cli.app import main; main()")

Text = Annotated[str, Field(min_length=1)]
Radius = Annotated[str, Field(pattern=r"^\d*\.?\d+([eE]-?\d+)?(/\d+)?$")]
Images = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


@task(name="evaluate", task_run_name="{job.name}", cache_policy=NO_CACHE, persist_result=False, **children.RETRIES)
def judge(job: Stage, options: list[str], guards: Guards, slot: slots.Taken) -> State:
    """The JSON of `basin evaluate`."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer.json")
        children.run(job.name, [*BASIN, "evaluate", *options, "--json", str(answer)], get_run_logger().info, guards, slot)
        return Completed(data=json.loads(answer.read_text(encoding="utf-8")))


@flow(name="evaluate", flow_run_name="evaluate {target}: {norm} {eps}, {suite}", persist_result=False)
def evaluate(
    target: Text,
    data: Text = "data/prepared",
    norm: Literal["linf", "l2", "l1"] = "linf",
    eps: Radius = "8/255",
    suite: Literal["quick", "standard", "autoattack", "adaptive"] = "adaptive",
    images: Images | None = None,
    seed: Seed = 0,
) -> State:
    """The robust accuracy of any model: the per-image worst case over a suite, with its interval and flags.

    Args:
        target: models:/NAME@ALIAS of the registry, a model folder, or FILE.py:FUNCTION that returns an nn.Module
        data: a prepared folder, an .npz of images and labels, or a folder of images
        norm: of the threat model
        eps: radius in pixels scaled to [0, 1], e.g. 0.1 or 8/255
        suite: quick (a look), standard (Basin's own), autoattack (AutoAttack by its authors), adaptive (made for the model that is met)
        images: how many images, at least 1; all if empty
        seed: of everything that is drawn, 0 or above
    """
    pages.mark([f"threat: {norm} {eps}", f"suite: {suite}"])
    limit = [] if images is None else ["--images", str(images)]
    options = [target, "--data", data, "--eps", eps, "--norm", norm, "--suite", suite, "--seed", str(seed), *limit]
    guards = Guards()
    states = places.fill([Stage(target, meta={"gpu": 1})], (), 1, lambda job, slot, _: judge.submit(job, options, guards, slot), guards)
    if (state := states[target]).is_completed():
        return Completed(message=_show(target, state.result()))
    error = StagesFailed({target: state.result(raise_on_failure=False)})
    return Failed(message=str(error), data=error)


def _show(target: str, found: dict[str, Any]) -> str:
    low, high = found["interval"]
    verdict = f"{found['worst_case']:.1%} worst case, 95% interval {low:.1%} to {high:.1%}, n = {found['n']}"
    rows = [["clean", f"{found['clean']:.1%}"], *([f"after {name}", f"{robust:.1%}"] for name, robust in found["attacks"].items())]
    flags = ", ".join(found["flags"]) or "none"
    text = f"{verdict}\n\n{pages.markdown(['', 'accuracy'], rows)}\n\nFlags: {flags} (docs/flags.md)"
    create_markdown_artifact(text, key="evaluation", description=f"{target}, judged")
    return verdict
