"""The flow from a terminal, once: what `basin flow` does."""

import logging
import os
import signal
import sys

import prefect.context
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings

from basin import environment
from basin.errors import EXIT_CODE, Absent, Mistake, exit_on_mistake, said
from basin.flow import cluster, server
from basin.flow.reproduction import StagesFailed, go_on, plan, repro
from basin.repro import slots
from basin.repro.guard import Stopped

log = logging.getLogger(__name__)


def use_server(port: int | None = None) -> str:
    """The API of the user's own server, or of one that is started for this process and ends with it, on `port` or any free one."""
    environment.apply()
    prefect.context.refresh_global_settings_context()  # prefect read its settings when it was imported
    settings = get_current_settings()
    if not settings.api.url:
        os.environ["PREFECT_API_URL"] = server.start(settings.home, port)
        prefect.context.refresh_global_settings_context()
    elif not settings.api.url.startswith(("http://", "https://")):
        raise Mistake(f"PREFECT_API_URL: is no address (got {settings.api.url!r}). Write http://HOST:PORT/api, or unset it.")
    else:
        with get_client(sync_client=True) as client:
            if error := client.api_healthcheck():
                raise Absent(f"PREFECT_API_URL: no server answers (got {settings.api.url}: {said(error)}). Start it, or unset it.")
    return str(get_current_settings().api.url)


def main(targets: list[str] | None = None, workers: int = 2, on: str = cluster.HERE) -> int:
    """Run the flow once from the command line. Exit code 0: all up to date; 1: a stage failed; 2: bad input; 130: interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to end like Ctrl-C, stages included
    try:
        with exit_on_mistake():
            with slots.only_run():
                plan(targets)  # before a server is started
            cluster.check(on)
            use_server()
            repro(targets, workers=workers, on=on)
    except StagesFailed as error:
        sys.stderr.write("".join(f"failed: {each}\n" for each in error.failed.values()))
        sys.stderr.write(f"What is done is kept. To go on: {go_on(targets, on)}\n")
        return EXIT_CODE if error.bad_input else 1
    except (KeyboardInterrupt, Stopped):
        sys.stderr.write(f"Stopped; what is done is kept. To go on: {go_on(targets, on)}\n")
        return 130
    return 0
