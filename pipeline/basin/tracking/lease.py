"""A lock on an MLflow server, which has none: a registered model of a fixed name, which only one process can create.

Its holder renews a tag. Who waits and sees no renewal for `STALE` seconds, by its own clock, takes the holder for killed and the lock away;
who has waited for `PATIENCE` seconds in all gives up. Of two that take it away at once, neither may take the next holder's instead: a stale
lock is renamed by what it last said, which only one can do, and keeps that name until that one has had its turn.
"""

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from basin.errors import Absent

NAME = "basin-is-registering"
LOOK, LONGEST_LOOK, RENEWAL, STALE, PATIENCE = 0.5, 8.0, 5.0, 60.0, 3600.0  # seconds
log = logging.getLogger(__name__)


@contextmanager
def held(store: MlflowClient) -> Iterator[None]:
    """Keep every other process that asks from the same server. Raises MlflowException where the server does not answer, Absent where others
    register for too long."""
    taken_away = _take(store)
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(store, ended), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        for name in (*taken_away, NAME):
            with suppress(MlflowException):  # the server is away: the lock goes stale
                store.delete_registered_model(name)


def _take(store: MlflowClient) -> list[str]:
    """Wait for the lock and have it; the names of the stale ones that this process took away."""
    mine, seen, told, look, taken_away = uuid.uuid4().hex, "", False, LOOK, list[str]()
    began = since = time.monotonic()
    while (renewed := _renewed(store)) or not _created(store, mine):  # who waits only asks, which costs the server little
        if renewed == mine:  # made, and the answer was lost
            break
        if time.monotonic() - began > PATIENCE:
            raise Absent(
                f"registry: other processes register on this server without end (got {PATIENCE:.0f} s of waiting). "
                f"End the one that hangs; its lock goes {STALE:.0f} s later. Then try again."
            )
        if renewed != seen:
            seen, since = renewed, time.monotonic()
        elif time.monotonic() - since > STALE:
            taken_away += _taken_away(store, renewed)
        if not told:
            log.info("registry: another process registers on this server; waiting for it to end, or %.0f s if it was killed", STALE)
            told = True
        time.sleep(look)
        look = min(1.5 * look, LONGEST_LOOK)  # many that wait must not keep the server busy
    return taken_away


def _taken_away(store: MlflowClient, renewed: str) -> list[str]:
    name = f"{NAME}-no-more-{renewed}"
    try:
        store.rename_registered_model(NAME, name)
    except MlflowException:  # another was first
        return []
    log.warning("registry: the process that was registering on this server is gone; its lock is taken away")
    return [name]


def _created(store: MlflowClient, mine: str) -> bool:
    try:
        store.create_registered_model(NAME, {"renewed": mine}, "Only while a process registers: a lock.")
    except MlflowException as error:
        # The second: it was there, and gone when MLflow looked at what it is.
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
            raise
        return False
    return True


def _renewed(store: MlflowClient) -> str:
    try:
        return store.get_registered_model(NAME).tags.get("renewed", "")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return ""


def _renew(store: MlflowClient, ended: threading.Event) -> None:
    while not ended.wait(RENEWAL):
        with suppress(MlflowException):  # tried again
            store.set_registered_model_tag(NAME, "renewed", uuid.uuid4().hex)
