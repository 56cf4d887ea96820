"""A stage on several nodes: the node of its first process calls the others, to places that Ray holds for all of them at once."""

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from basin.repro.graph import StageFailed

Place = Mapping[str, str]  # torchrun's variables of a process


@contextmanager
def called(assist: Callable[..., StageFailed | None], group: Any, *asked: Any) -> Iterator[tuple[Place, Callable[[], StageFailed | None]]]:
    """The first process's place, and a call that says what one of the others failed of, if one has. `assist(*asked, place)` is run at each
    other place of the `group`; what is left of it when the block ends is cancelled."""
    if group is None:
        yield {}, lambda: None
        return
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    address, size = ray.util.get_node_ip_address(), group.bundle_count
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": address, "MASTER_PORT": str(_free_port(address))}
    helpers = [
        ray.remote(assist)
        .options(
            num_cpus=group.bundle_specs[rank].get("CPU", 0),
            num_gpus=1,
            max_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, rank),
        )
        .remote(*asked, common | {"RANK": str(rank)})
        for rank in range(1, size)
    ]

    def failed() -> StageFailed | None:
        ended, _ = ray.wait(helpers, num_returns=len(helpers), timeout=0)
        return next(filter(None, ray.get(ended)), None)

    try:
        yield common | {"RANK": "0"}, failed
    finally:
        for helper in helpers:
            ray.cancel(helper)


def _free_port(address: str) -> int:
    with socket.create_server((address, 0)) as server:
        return server.getsockname()[1]
