"""What the cluster's autoscaler may add, read where the autoscaler itself reads it: Ray 2.60 tells a driver nothing.

    growth = find_growth()      # None: nothing says that the cluster grows

Three places, in this order: what a platform has reported to Ray's control store; the RayCluster object, where the
driver runs in one of its pods; the file that the head's monitor process was started with (`ray up`).
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml

from tlray.distributed.errors import answer
from tlray.errors import TrialError
from tlray.process.console import say

HEAD_RESOURCE = "node:__internal_head__"  # every head has it
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
UNBOUNDED = 1000  # nodes, where a platform reports no limit
_warned: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """Nodes that are alike; `resources` in Ray's names, `count` of them at most."""

    resources: Mapping[str, float]
    count: int


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The workers that an autoscaler may run at once, those that are there already included."""

    types: tuple[NodeType, ...]
    max_workers: int  # of all types together
    source: str  # who says so, for messages


def find_growth() -> Growth | None:
    """Ray must be connected. What cannot be read is said on stderr and counts as not there."""
    return _reported() or of_kubernetes() or _of_the_head()


def growth_of(config: Mapping[str, Any], source: str) -> Growth | None:
    """An autoscaler's configuration in the cluster launcher's terms; None where it may start no worker."""
    types = tuple(
        NodeType(resources=dict(fields.get("resources") or {}), count=int(fields["max_workers"]))
        for name, fields in config.get("available_node_types", {}).items()
        if int(fields.get("max_workers") or 0) > 0
    )
    in_total = sum(kind.count for kind in types)
    max_workers = min(in_total, int(config.get("max_workers", in_total)))
    return Growth(types=types, max_workers=max_workers, source=source) if max_workers > 0 else None


def _reported() -> Growth | None:
    """Private in 2.60, and the same source as Ray Train's own check of what a cluster can become."""
    config = ray._private.state.state.get_cluster_config()
    if config is None:
        return None
    types = tuple(
        NodeType(resources=dict(group.resources), count=group.max_count if group.max_count >= 0 else UNBOUNDED)
        for group in config.node_group_configs
        if group.max_count
    )
    if not types:
        return None
    return Growth(types=types, max_workers=sum(kind.count for kind in types), source="the cluster's platform")


def of_kubernetes() -> Growth | None:
    """KubeRay lets the pods of an autoscaling cluster read their own RayCluster."""
    name = os.environ.get("RAY_CLUSTER_NAME")
    if not name or not NAMESPACE_FILE.is_file():
        return None
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    try:
        cluster = KubernetesHttpApiClient(namespace=NAMESPACE_FILE.read_text().strip()).get(f"rayclusters/{name}")
    except OSError as error:  # requests' errors are OSErrors; KubeRay gives no permission where nothing autoscales
        _warn_once(f"RayCluster {name} cannot be read", error)
        return None
    if not cluster["spec"].get("enableInTreeAutoscaling"):
        return None
    return growth_of(_derive_autoscaling_config_from_ray_cr(cluster), f"RayCluster {name}")


def _of_the_head() -> Growth | None:
    own = ray.get_runtime_context().get_node_id()
    head = next((node for node in ray.nodes() if node["Alive"] and HEAD_RESOURCE in node["Resources"]), None)
    if head is None:
        return None
    address = ray.get_runtime_context().gcs_address
    try:
        text = _monitor_file(address) if head["NodeID"] == own else _asked_on_the_head(address)
    except (OSError, TrialError) as error:
        _warn_once("the autoscaler's configuration cannot be read on the head", error)
        return None
    return growth_of(yaml.safe_load(text), "the autoscaler's configuration") if text else None


def _asked_on_the_head(gcs_address: str) -> str:
    task = ray.remote(_monitor_file).options(num_cpus=0, resources={HEAD_RESOURCE: 0.001})
    return str(answer(task.remote(gcs_address), "reading it"))


def _monitor_file(gcs_address: str) -> str:
    """What the monitor of the Ray at `gcs_address` was configured with; empty where it has no file."""
    wanted = f"--gcs-address={gcs_address}"
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if wanted in command and any(part.endswith("/monitor.py") for part in command):
            for part in command:
                if part.startswith("--autoscaling-config="):
                    return Path(part.partition("=")[2]).expanduser().read_text()
    return ""


def _warn_once(what: str, error: Exception) -> None:
    """The cluster is looked at again and again, and an error's own words may differ each time."""
    if what not in _warned:
        _warned.add(what)
        remedy = "where the cluster grows, say in cluster.node_types how far"
        say(f"warning: {what} ({error}): only the nodes that are there are counted on; {remedy}", file=sys.stderr)
