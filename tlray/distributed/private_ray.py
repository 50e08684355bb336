"""What Ray 2.60 has no public switch for, in one place; each has a test that fails where a new Ray changes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray._private.ray_constants
import ray._private.utils
import ray._private.worker
import ray._raylet

from tlray.process.ending import renew_handlers

PARTS = ("gcs_server", "raylet")  # without which a Ray of this machine does nothing more


@contextmanager
def on_loopback() -> Iterator[None]:
    """Ray takes 127.0.0.1 for this machine's address, as it does on macOS, and binds everything to it.

    Given as `_node_ip_address`, it would be replaced by the address of the network.
    """
    before = ray._private.ray_constants.ENABLE_RAY_CLUSTER
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def without_signal_handlers() -> Iterator[None]:
    """`ray.init` installs none: its own end the process with 15, or in a dump of C++ and -6.

    The core worker installs its own whatever is asked for: ours are put back as soon as it has been made.
    """
    compiled: Any = ray._raylet
    set_handler, core_worker = ray._private.utils.set_sigterm_handler, compiled.CoreWorker

    def make_core_worker(*arguments: Any, **options: Any) -> Any:
        made = core_worker(*arguments, **options)
        renew_handlers()
        return made

    ray._private.utils.set_sigterm_handler = lambda handler: None
    compiled.CoreWorker = make_core_worker
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler, compiled.CoreWorker = set_handler, core_worker
        renew_handlers()


def silence_errors() -> None:
    """The driver does not print what Ray publishes of workers and nodes that died: a run survives them, or says so."""
    ray._private.worker.print_to_stdstream = lambda data, ignore_prefix: None


def keep_secrets_at_home() -> None:
    """Tune copies the driver's AWS keys into a runtime environment, which Ray writes into a log; not any more."""
    from ray.tune.execution import class_cache

    secret = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE -= secret


def started_cluster() -> tuple[str, bool] | None:
    """The address of the Ray that `ray start` has started or joined on this machine, and whether it still runs."""
    from ray._private.services import find_bootstrap_address, find_gcs_addresses

    address = find_bootstrap_address(None)
    return (address, address in find_gcs_addresses()) if address else None


def address_file() -> str:
    """Where `ray start` writes that address, and `ray stop` removes it."""
    from ray._common.utils import get_ray_address_file

    return str(get_ray_address_file(None))


def dead_part() -> str | None:
    """Which of the processes that this driver has started, and its Ray cannot do without, has ended, and how."""
    node = ray._private.worker._global_node
    ended: list[tuple[str, Any]] = node.dead_processes() if node is not None else []
    for name, process in ended:
        if name in PARTS:
            return f"{name} ({_how(process)})"
    return None


def _how(process: Any) -> str:
    code = process.returncode
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"killed by signal {-code}"


def waiting_shapes() -> list[dict[str, float]]:
    """The resources of each task, actor and group that Ray has not placed yet."""
    state = _resource_state()
    shapes = [dict(pending.request.resources_bundle) for pending in state.pending_resource_requests]
    for gang in state.pending_gang_resource_requests:
        shapes += [dict(request.resources_bundle) for request in gang.requests]
    return [{name: amount for name, amount in shape.items() if _is_countable(name)} for shape in shapes]


def node_shapes() -> list[tuple[dict[str, float], dict[str, float]]]:
    """(all, free) resources of each node that is alive."""
    return [(dict(node.total_resources), dict(node.available_resources)) for node in _resource_state().node_states]


def _resource_state() -> Any:
    from ray.autoscaler.v2.sdk import get_cluster_resource_state

    worker: Any = ray._private.worker.global_worker
    return get_cluster_resource_state(worker.gcs_client)


def _is_countable(name: str) -> bool:
    """Not the marks of placement groups, which are of no node before they are placed."""
    return "_group_" not in name and name != "bundle"
