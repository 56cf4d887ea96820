"""Prefect's server with PostgreSQL behind it and a password before it: what docs/cluster.md says to start."""

from collections.abc import Callable

import httpx
import pytest
from test_flow import FORK
from test_flow_serving import Served, served, until  # noqa: F401
from test_servers import database, postgres  # noqa: F401

pytestmark = pytest.mark.slow


def test_a_run_with_postgresql_and_a_password(postgres: str, served: Callable[..., Served]):  # noqa: F811
    address = database(postgres, "prefect").replace("postgresql://", "postgresql+asyncpg://")
    here = served(
        FORK,
        extra={
            "PREFECT_API_DATABASE_CONNECTION_URL": address,
            "PREFECT_SERVER_API_AUTH_STRING": "someone:secret",
            "PREFECT_API_AUTH_STRING": "someone:secret",
        },
    )
    for password, code in ((None, 401), (("someone", "guess"), 401), (("someone", "secret"), 200)):
        assert httpx.post(f"{here.url}/flow_runs/filter", json={}, auth=password).status_code == code
    run = here.run(workers=2)
    until(lambda: here.state(run) == "Completed", 120)
    assert (here.place / "d").exists()
    assert not (here.home / "prefect.db").exists()
