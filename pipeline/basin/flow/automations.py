"""Rules that the server itself keeps: a run that is no more is marked Crashed. Whoever serves its pool starts it again (serving.py).

A flow says every 30 s that it is alive (PREFECT_FLOWS_HEARTBEAT_FREQUENCY). Where a machine dies with worker and flow on it, nobody is left
to tell the server; it would show the run as Running for ever (docs.prefect.io, detecting zombie flows).
"""

from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

SILENCE = timedelta(seconds=75)  # two heartbeats of 30 s are missing
HEARTBEAT = "prefect.flow-run.heartbeat"
ENDED = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Crashed", "AwaitingRetry", "Paused", "Suspended")}
BEGUN = {f"prefect.flow-run.{name}" for name in ("Running", "Scheduled", "Late", "Cancelling")} | {HEARTBEAT}


def _silent(name: str, after: set[str], expect: set[str], message: str) -> AutomationCore:
    """Only runs of our deployments, which have the tag `basin`: the server may be other people's too."""
    trigger = EventTrigger(
        posture=Posture.Proactive,
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        match_related=ResourceSpecification({"prefect.resource.id": "prefect.tag.basin", "prefect.resource.role": "tag"}),
        for_each={"prefect.resource.id"},
        after=after,
        expect=expect,
        threshold=1,
        within=SILENCE,
    )
    return AutomationCore(name=name, trigger=trigger, actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)])


def wanted() -> list[AutomationCore]:
    """The two rules."""
    return [
        _silent("basin: silent runs have crashed", {HEARTBEAT}, {HEARTBEAT, *ENDED}, "No heartbeat for 75 s"),
        _silent("basin: runs that do not start have crashed", {"prefect.flow-run.Pending"}, BEGUN | ENDED, "Not started within 75 s"),
    ]


def install(client: SyncPrefectClient) -> None:
    """Add the rules that the server does not have; what was changed on its pages stays."""
    known = {automation.name for automation in client.read_automations()}
    for automation in wanted():
        if automation.name not in known:
            client.create_automation(automation)
