"""The cluster: the nodes that are there now, and what it can become.

connect()
cluster = cluster_summary(config.cluster)
cluster.room({"CPU": 4, "GPU": 1})          # how many of these fit when the autoscaler has added what it may
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ray

from tlray.config import ClusterConfig
from tlray.distributed.autoscaling import HEAD_RESOURCE, Growth, NodeType, find_growth
from tlray.distributed.errors import reason_of
from tlray.distributed.local_ray import start_local_ray
from tlray.distributed.private_ray import (
    address_file,
    silence_errors,
    started_cluster,
    without_signal_handlers,
)
from tlray.distributed.watchdog import start_watchdog
from tlray.errors import ClusterError, TlrayError

Resources = Mapping[str, float]  # by Ray's names
ROUNDING = 1e-6  # three shares of 0.3333 are a GPU


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node that is alive."""

    node_id: str
    is_head: bool
    resources: Resources


@dataclass(frozen=True, kw_only=True)
class ClusterSummary:
    """What Ray counts on all nodes together, each of them, and what the autoscaler may add."""

    nodes: tuple[Node, ...]
    growth: Growth | None = None  # None: it stays as it is

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    @property
    def cpus(self) -> float:
        return self.total("CPU")

    @property
    def gpus(self) -> float:
        return self.total("GPU")

    @property
    def memory_bytes(self) -> float:
        return self.total("memory")

    def total(self, name: str) -> float:
        """Of the nodes that are alive now."""
        return sum(node.resources.get(name, 0.0) for node in self.nodes)

    def most(self, name: str) -> float:
        """Of a resource, when the cluster is as large as it may become."""
        heads = sum(node.resources.get(name, 0.0) for node in self.nodes if node.is_head)
        return max(self.total(name), heads + self._of_workers(lambda kind: kind.get(name, 0.0)))

    def room_now(self, each: Resources) -> int:
        """How many of `each` the nodes that are alive hold."""
        return sum(how_many(node.resources, each) for node in self.nodes)

    def room(self, each: Resources) -> int:
        """How many of `each` the cluster can come to hold."""
        heads = sum(how_many(node.resources, each) for node in self.nodes if node.is_head)
        return max(self.room_now(each), heads + int(self._of_workers(lambda kind: how_many(kind, each))))

    def shapes(self) -> tuple[Resources, ...]:
        """The nodes that there are or may be, each kind once."""
        known = {tuple(sorted(_counted(node.resources).items())) for node in self.nodes}
        known |= {tuple(sorted(_counted(kind.resources).items())) for kind in self._types()}
        return tuple(dict(shape) for shape in sorted(known))

    def in_words(self) -> str:
        """`1 x {CPU: 2} and, by the autoscaler's configuration, up to 4 x {CPU: 8, GPU: 1}`."""
        now = [_counted(node.resources) for node in self.nodes]
        kinds = {str(shape): (shape, now.count(shape)) for shape in now}
        words = ", ".join(f"{count} x {describe(shape)}" for shape, count in kinds.values()) or "no node"
        if self.growth is None:
            return words
        types = ", ".join(f"{kind.count} x {describe(_counted(kind.resources))}" for kind in self.growth.types)
        limit = self.growth.max_workers
        at_once = f", {limit} at once" if limit < sum(kind.count for kind in self.growth.types) else ""
        return f"{words} and, by {self.growth.source}, up to {types}{at_once}"

    def _types(self) -> tuple[NodeType, ...]:
        return self.growth.types if self.growth is not None else ()

    def _of_workers(self, value: Callable[[Resources], float]) -> float:
        """The sum of `value` over as many workers as there may be, of the kinds that have most of it."""
        total, left = 0.0, self.growth.max_workers if self.growth is not None else 0
        for each, count in sorted(((value(kind.resources), kind.count) for kind in self._types()), reverse=True):
            total += each * min(count, left)
            left -= min(count, left)
        return total


def connect() -> None:
    """Join the cluster that RAY_ADDRESS or `ray start` names, or start one on this machine (127.0.0.1 only).

    From then on a watchdog ends the command where Ray dies. ClusterError for an address where nothing answers;
    TlrayError where this machine is too busy to start Ray.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's GPU variable would otherwise be emptied in tasks that reserve none, with a warning each time.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    silence_errors()
    address = os.environ.get("RAY_ADDRESS") or _address_of_this_machine()
    if address == "local":  # Ray's word for one of its own
        address = None
    tree = None
    try:
        if address:
            with without_signal_handlers():
                ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        else:
            tree = start_local_ray()
    except TlrayError:
        raise
    except Exception as error:  # a bare one where a process of Ray's does not come up within 30 s
        ray.shutdown()
        if address:
            raise ClusterError(f"RAY_ADDRESS {address}: {reason_of(error)}; check it with `ray status`") from error
        if isinstance(error, OSError) and (place := error.filename) is not None:
            raise TlrayError(
                f"Ray cannot be started on this machine: {place}: {error.strerror}; it keeps a token below HOME "
                f"({os.environ.get('HOME', 'not set')}) and its session below RAY_TMPDIR or /tmp: set them to folders "
                "that can be written and have room"
            ) from error
        raise TlrayError(
            f"Ray cannot be started on this machine: {reason_of(error).strip('. ')}; give the same command again when "
            "less runs here, `tlray doctor` says what memory and CPUs there are"
        ) from error
    start_watchdog(tree)


def _address_of_this_machine() -> str | None:
    """Of the cluster that `ray start` has made this machine a node of; ClusterError where that has died."""
    started = started_cluster()
    if started is None:
        return None
    address, runs = started
    if not runs:
        raise ClusterError(
            f"the Ray at {address}, which {address_file()} names, does not run any more: `ray start` it again, or "
            "forget it with `ray stop`; RAY_ADDRESS=local starts one for this command alone"
        )
    return address


def cluster_summary(config: ClusterConfig | None = None) -> ClusterSummary:
    """The nodes that are alive now, and what may be added: by `config.node_types`, else by the autoscaler's own."""
    connect()
    nodes = tuple(
        Node(node_id=node["NodeID"], is_head=HEAD_RESOURCE in node["Resources"], resources=node["Resources"])
        for node in ray.nodes()
        if node["Alive"]
    )
    if config is None or not config.node_types:
        return ClusterSummary(nodes=nodes, growth=find_growth())
    types = tuple(
        NodeType(resources={"CPU": kind.cpus, "GPU": kind.gpus, **kind.resources}, count=kind.max_workers)
        for kind in config.node_types
    )
    total = sum(kind.count for kind in types)
    return ClusterSummary(nodes=nodes, growth=Growth(types=types, max_workers=total, source="cluster.node_types"))


def how_many(resources: Resources, each: Resources) -> int:
    """How many of `each` fit a node."""
    asked = [(name, amount) for name, amount in each.items() if amount > 0]
    return min((int(resources.get(name, 0.0) / amount + ROUNDING) for name, amount in asked), default=0)


def describe(resources: Resources) -> str:
    return "{" + ", ".join(f"{name}: {amount:g}" for name, amount in resources.items() if amount) + "}"


def _counted(resources: Resources) -> dict[str, float]:
    """Without Ray's bookkeeping: memory in bytes, and a resource for each node's address."""
    left_out = ("memory", "object_store_memory")
    return {
        name: amount
        for name, amount in sorted(resources.items())
        if amount and name not in left_out and not name.startswith("node:")
    }
