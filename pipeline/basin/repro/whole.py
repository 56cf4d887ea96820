"""The whole graph by plain `dvc repro`: what `basin repro` does."""

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack

from basin.repro import code, graph, lock, slots, watched
from basin.repro.guard import Guards

INTERRUPTED = 130
log = logging.getLogger(__name__)


def reproduce(targets: Sequence[str] = (), *options: str) -> int:
    """`dvc repro` on our own stdout, when no other run is at work here; its exit code, 130 where Ctrl-C ended dvc and the stage with us.

    Raises Mistake where params.yaml or the workspace is wrong.
    """
    config = graph.check()
    try:
        with slots.only_run(patience=math.inf) as held, ExitStack() as at_end:
            lock.mend()
            code.keep()
            watched.keep(config)
            watched.tell_of_others(config)
            graph.choose(graph.graph(), targets)  # whatever dvc cannot read or find is said in our words
            at_end.callback((guards := Guards()).end)
            command = [*graph.DVC, "repro", *options, *targets]
            return guards.start(command, graph.child_environment({}), [held.fileno()]).wait()
    except KeyboardInterrupt:
        log.warning("Stopped; what is done is kept. To go on: %s", " ".join(["basin repro", *targets]))
        return INTERRUPTED
