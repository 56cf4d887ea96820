"""Every night: pull what others made, bring the graph up to date, let the gate decide who is champion, write what changed."""

from collections.abc import Mapping
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed, State

from basin.errors import Mistake
from basin.flow import children, cluster, pages
from basin.flow.reproduction import Targets, Workers, bring_up_to_date, run_name
from basin.registry import lookup, promotion, registration
from basin.repro import graph as dvc
from basin.repro.guard import Guards


@task(name="transfer", task_run_name="{direction}", cache_policy=NO_CACHE, persist_result=False, **children.RETRIES)
def transfer(direction: str, guards: Guards, *options: str) -> State:
    """`dvc pull` or `dvc push` of outputs and run cache; Skipped where no remote is configured."""
    if not dvc.has_remote():
        return Completed(name="Skipped", message="no DVC remote: see docs/cluster.md")
    children.run(direction, [*dvc.DVC, "--wait-for-lock", direction, "--run-cache", *options], get_run_logger().info, guards)
    return Completed()


@task(name="promote", cache_policy=NO_CACHE, persist_result=False, **children.RETRIES)
def promote() -> dict[str, Any]:
    """The gate's decisions, acted on, and the champion then."""
    from basin.config import params

    decisions = registration.promote(params.load(), dry_run=False)
    return {"champion": champion.fn(), "decisions": [[name, one.standing, "; ".join(one.reasons)] for name, one in decisions.items()]}


@task(name="champion", cache_policy=NO_CACHE, persist_result=False, **children.RETRIES)
def champion() -> str:
    """Who is champion now, in words."""
    from basin.config import params

    found = [one for one in lookup.find(name=params.load().registered_name) if promotion.CHAMPION in one["aliases"]]
    return f"version {found[0]['version']} ({found[0]['model']}, worst case {found[0]['worst_case']:.1%})" if found else "none"


@flow(name="nightly", flow_run_name=lambda: f"nightly, {run_name()}", persist_result=False)
def nightly(targets: Targets | None = None, workers: Workers = 2, on: cluster.Place = cluster.HERE) -> State:
    """Pull data and earlier results, reproduce, promote by the gate, push, and write what changed.

    Args:
        targets: stages or families of stages; everything if empty
        workers: how many stages may run at once, at least 1
        on: here, this machine; ray or ray://HOST:PORT, the nodes of that Ray cluster for every stage that wants a GPU (docs/cluster.md)
    """
    guards = Guards()
    try:
        before = champion(return_state=True)
        pulled = transfer("pull", guards, "--allow-missing", return_state=True)
        state = bring_up_to_date(targets, None, workers, on)
        decided = promote(return_state=True)
        pushed = transfer("push", guards, return_state=True)
    except Mistake as mistake:
        return Failed(message=str(mistake), data=mistake)
    except BaseException:
        guards.end()
        raise
    steps: dict[str, State] = {"champion": before, "pull": pulled, "reproduce": state, "promote": decided, "push": pushed}
    _summary(steps)
    if state.is_failed():
        return state
    failed = [f"{name}: {one.message}" for name, one in steps.items() if not one.is_completed()]
    return Failed(message="\n".join(failed)) if failed else Completed(message=state.message)


def _summary(steps: Mapping[str, State]) -> None:
    rows = [[name, state.name, state.message or ""] for name, state in steps.items()]
    text = pages.markdown(["step", "state", ""], rows)
    if steps["promote"].is_completed():
        found, before = steps["promote"].result(), steps["champion"].result(raise_on_failure=False)
        verdict = "stays" if before == found["champion"] else "is new"
        text += f"\n\nThe champion {verdict}: {found['champion']}; before: {before}\n\n"
        text += pages.markdown(["version", "standing", "why"], found["decisions"])
    create_markdown_artifact(text, key="nightly", description="What changed tonight")
