"""Commands that a task waits for: guarded, their lines in the task's log, tried again where that can help."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from subprocess import PIPE, STDOUT
from typing import Any

from prefect.states import State
from prefect.tasks import exponential_backoff

from basin.errors import Absent
from basin.repro import graph, slots
from basin.repro.graph import StageFailed
from basin.repro.guard import Guards, Stopped


def _worth_retrying(task: Any, run: Any, state: State) -> bool:
    """A crash, a full GPU, an absent server or disk may pass; wrong input stays wrong, and a stopped run stays stopped."""
    error = state.data
    return isinstance(error, Absent) or (isinstance(error, StageFailed) and not error.bad_input)


RETRIES: Mapping[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": exponential_backoff(2),  # 2 s, 4 s
    "retry_jitter_factor": 0.5,  # stages that were refused the same file do not come back together
    "retry_condition_fn": _worth_retrying,
}


def run(
    name: str,
    command: Sequence[str],
    on_line: Callable[[str], object],
    guards: Guards,
    taken: slots.Taken | None = None,
    env: Mapping[str, str] | None = None,
    keep: Sequence[int] = (),
) -> None:
    """Run a command to its end, `keep` held until it is gone.

    Raises StageFailed with its exit code and last words, Stopped when the guards were told to end.
    """
    slot = taken or slots.Taken((), ())
    environment = graph.child_environment(slot.environment | dict(env or {}))
    process = guards.start(command, environment, [*slot.keep, *keep], stdout=PIPE, stderr=STDOUT)
    assert process.stdout is not None
    last: deque[str] = deque(maxlen=50)
    with process.stdout as pipe:
        for line in graph.lines(pipe):
            on_line(line)
            last.append(line)
    if code := process.wait():
        if guards.ended:
            raise Stopped(f"{name}: stopped")
        of_stage = graph.failure(name, last)
        if of_stage.code is not None:  # the command is dvc's
            raise of_stage
        raise StageFailed(name, code, last[-1].removeprefix("error: ") if last else "ended without a word")
