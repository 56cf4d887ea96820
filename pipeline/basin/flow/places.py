"""Jobs onto places: each is submitted when all it needs has ended and its slot is free, the first of the list first."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from queue import Empty, Queue

from prefect.futures import PrefectFuture
from prefect.states import State

from basin.repro import slots
from basin.repro.graph import Stage
from basin.repro.guard import Guards

Submit = Callable[[Stage, slots.Taken, list[PrefectFuture]], PrefectFuture]


def fill(
    jobs: Sequence[Stage], clean: Collection[str], workers: int, submit: Submit, guards: Guards, devices: Sequence[str] | None = None
) -> dict[str, State]:
    """The final state of every job, by name. `clean` ones take no place. A cancel or Ctrl-C ends what the guards started.
    `devices`: the GPUs to share out, all of this machine where nothing is said.

    Prefect's own queue would let a job that waits for its inputs or for a GPU keep a worker from one that could run. A job whose
    input failed is submitted too: Prefect marks it NotReady without running it.
    """
    try:
        return {name: future.state for name, future in _fill(jobs, clean, workers, submit, devices).items()}
    except BaseException:  # Prefect would leave the children running
        guards.end()
        raise


def _fill(
    jobs: Sequence[Stage], clean: Collection[str], workers: int, submit: Submit, devices: Sequence[str] | None
) -> dict[str, PrefectFuture]:
    futures: dict[str, PrefectFuture] = {}
    running: dict[str, slots.Taken] = {}
    ended: Queue[str] = Queue()
    waiting, devices = list(jobs), slots.devices() if devices is None else devices
    while waiting or running:
        for job in [job for job in waiting if all(name in futures and name not in running for name in job.upstream)]:
            inputs = [futures[name] for name in job.upstream]
            idle = job.name in clean or not all(future.state.is_completed() for future in inputs)
            slot = slots.Taken((), ()) if idle else slots.take(job.gpus, devices, cpus=job.cpus, workers=workers)
            if slot is None:
                continue
            running[job.name] = slot
            waiting.remove(job)
            futures[job.name] = submit(job, slot, inputs)
            futures[job.name].add_done_callback(partial(_tell, ended, job.name))
        try:
            name = ended.get(timeout=1.0)  # the timeout: another process may have freed a slot
        except Empty:
            continue
        futures[name].wait()  # a future learns its final state only when asked
        running.pop(name).release()
    return futures


def _tell(ended: Queue[str], name: str, future: PrefectFuture) -> None:
    ended.put(name)
