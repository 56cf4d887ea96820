"""Rules that the server itself keeps: a run that is no more is marked Crashed, and a crashed run is started again.

A flow says every 30 s that it is alive (PREFECT_FLOWS_HEARTBEAT_FREQUENCY). Where a machine dies with worker and flow on it, nobody is left
to tell the server; it would show the run as Running for ever (docs.prefect.io, detecting zombie flows).
"""

from datetime import timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

SILENCE = timedelta(seconds=75)  # two heartbeats of 30 s are missing
HEARTBEAT = "prefect.flow-run.heartbeat"
ENDED = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Crashed", "AwaitingRetry", "Paused", "Suspended")}
BEGUN = {f"prefect.flow-run.{name}" for name in ("Running", "Scheduled", "Late", "Cancelling")} | {HEARTBEAT}


def _rule(name: str, expect: set[str], posture: Posture, action: ChangeFlowRunState, **trigger: Any) -> AutomationCore:
    """Only runs of our deployments, which have the tag `basin`: the server may be other people's too."""
    runs = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
    ours = ResourceSpecification({"prefect.resource.id": "prefect.tag.basin", "prefect.resource.role": "tag"})
    common = {"for_each": {"prefect.resource.id"}, "threshold": 1, "match": runs, "match_related": ours}
    return AutomationCore(name=name, actions=[action], trigger=EventTrigger(expect=expect, posture=posture, **common, **trigger))


def _silent(name: str, after: set[str], expect: set[str], message: str) -> AutomationCore:
    action = ChangeFlowRunState(state=StateType.CRASHED, message=message)
    return _rule(name, expect, Posture.Proactive, action, after=after, within=SILENCE)


def wanted() -> list[AutomationCore]:
    """The three rules."""
    again = ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message="Crashed; started again", force=True)
    return [
        _silent("basin: silent runs have crashed", {HEARTBEAT}, {HEARTBEAT, *ENDED}, "No heartbeat for 75 s"),
        _silent("basin: runs that do not start have crashed", {"prefect.flow-run.Pending"}, BEGUN | ENDED, "Not started within 75 s"),
        _rule("basin: crashed runs start again", {"prefect.flow-run.Crashed"}, Posture.Reactive, again),
    ]


def install(client: SyncPrefectClient) -> None:
    """Add the rules that the server does not have; what was changed on its pages stays."""
    known = {automation.name for automation in client.read_automations()}
    for automation in wanted():
        if automation.name not in known:
            client.create_automation(automation)
