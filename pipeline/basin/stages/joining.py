"""How a stage comes to be several processes, and how all of them end when one does.

As many as `meta: {gpu: n}` of dvc.yaml says, of the GPUs that there are: the first starts the others with its own command. Where torchrun's
variables are set (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), by torchrun or by the flow for several nodes
(basin/flow/node.py), the processes are there already. How many they are is no part of the params: no stage is stale because of it.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from basin.config import document
from basin.errors import Mistake
from basin.processes import ALONE, Group, Lost
from basin.repro import slots
from basin.repro.guard import GRACE, LOOK, Guards

log = logging.getLogger(__name__)
EVER = timedelta(days=30)  # for another's share of the work: that it is gone is known otherwise
GONE = "processes: one of this stage ended (got no word of it). Run it again; what is done is kept."
SAID, STARTED = "said", "started"  # in the store: what ended one of the processes, how many are there


@contextmanager
def joined(name: str, shared: bool, device: str) -> Iterator[Group]:
    """This process's place among those of the stage. When one of them fails all end, and a mistake is said once a machine.

    Raises Mistake where torchrun has made several processes of a stage that is not `shared`.
    """
    given = "WORLD_SIZE" in os.environ
    size = int(os.environ["WORLD_SIZE"]) if given else asked() if shared else 1
    if size == 1:
        yield ALONE
        return
    if not shared:
        raise Mistake(f"{name}: is one process (got {size} of torchrun's). Start it with: python -m.")
    rank = int(os.environ["RANK"]) if given else 0
    if rank:
        logging.getLogger().setLevel(logging.ERROR)
    guards = Guards()
    store, helpers = _met() if given else _started(size, guards)
    try:
        _wait(store, helpers)
        if helpers:
            threading.Thread(target=_watch, args=(helpers, guards), daemon=True).start()
        with _group(store, rank, size, device):
            log.info("%s: shared by %d processes", name, size)
            yield Group(rank, size)
    except BaseException as error:
        guards.end()
        if (ending := _ending(store, rank, error)) is error:
            raise
        raise ending from None
    finally:
        for helper in helpers:
            helper.wait()


def asked() -> int:
    """How many processes this stage is to be; 1 where DVC does not run it."""
    name, graph = os.environ.get("DVC_STAGE", "").partition("@")[0], Path("dvc.yaml")
    if not name or not graph.exists():
        return 1
    table = (document.read(graph).get("stages") or {}).get(name, {})
    gpus = (table.get("do", table).get("meta") or {}).get("gpu", 1)
    if not isinstance(gpus, int | float):
        raise Mistake(f"dvc.yaml: {name}: meta.gpu: the stage reads it as it stands (got {gpus!r}). Write the number itself.")
    return 1 if gpus < 2 else max(1, min(int(gpus), len(slots.devices())))


def _watch(helpers: Sequence[subprocess.Popen], guards: Guards) -> None:
    """End this process where it waits for one that is gone and does not hear of it: gloo's connections tell, NCCL's do not."""
    while all(helper.poll() in (None, 0) for helper in helpers):
        time.sleep(LOOK)
    time.sleep(GRACE)
    if not guards.ended:
        sys.stderr.write(f"error: {GONE}\n")
        os._exit(Lost.code)


def _met() -> tuple[Any, Sequence[subprocess.Popen]]:
    import torch.distributed as dist

    store, _, _ = next(iter(dist.rendezvous("env://", timeout=EVER)))  # type: ignore[operator]
    return store, ()


def _started(size: int, guards: Guards) -> tuple[Any, Sequence[subprocess.Popen]]:
    """The store, on the loopback address, and the other processes, with this one's command."""
    from torch.distributed import TCPStore

    listening = socket.create_server(("127.0.0.1", 0))
    host, port = listening.getsockname()
    store = TCPStore(host, port, size, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())
    place = {"WORLD_SIZE": str(size), "MASTER_ADDR": host, "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": _loopback()}
    os.environ["GLOO_SOCKET_IFNAME"] = place["GLOO_SOCKET_IFNAME"]
    command = [sys.executable, *sys.orig_argv[1:]]
    return store, [guards.start(command, os.environ | place | {"RANK": str(k), "LOCAL_RANK": str(k)}) for k in range(1, size)]


def _wait(store: Any, helpers: Sequence[subprocess.Popen]) -> None:
    """Until those that this process started are there. Raises Lost where one has ended: torch would wait for it."""
    while helpers and store.add(STARTED, 0) < len(helpers):
        if any(helper.poll() is not None for helper in helpers):
            raise Lost(GONE)
        time.sleep(0.05)


def _loopback() -> str:
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


@contextmanager
def _group(store: Any, rank: int, size: int, device: str) -> Iterator[None]:
    import torch
    import torch.distributed as dist

    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if rank:
        store.add(STARTED, 1)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=EVER)
    try:
        yield
    except Mistake as mistake:
        if not isinstance(mistake, Lost):
            store.set(SAID, "\n".join(mistake.messages))  # before the others find this one gone
        raise
    finally:
        dist.destroy_process_group()


def _ending(store: Any, rank: int, error: BaseException) -> BaseException:
    """What this process ends with: the mistake that ended the first to fail. Silence where that is said already on this machine."""
    if rank:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending, and the first may see to it
    try:
        if isinstance(error, Lost) and store.check([SAID]):
            error = Mistake(*store.get(SAID).decode().split("\n"))
        if isinstance(error, Lost) and rank:  # the first was stopped, or says what it died of
            return SystemExit(error.code)
        if isinstance(error, Mistake) and store.add(f"{SAID} on {socket.gethostname()}", 1) > 1:
            return SystemExit(error.code)
    except RuntimeError:  # the store went with the first process
        return SystemExit(Lost.code)
    return SystemExit(128 + 2) if rank and isinstance(error, KeyboardInterrupt) else error
