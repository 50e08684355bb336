"""Before anything is spent: can a trial ever run, is there a node for one, and do all nodes see the run's locations?

    make_ready(config, say)      # waits for the first node where the autoscaler has to start one

ClusterError, StorageError: what to change. Nodes that come later find out themselves: see `tasks.load_run_here`.
"""

import os
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tlray import storage
from tlray.config import RunConfig
from tlray.distributed.cluster import ClusterSummary, cluster_summary, describe, how_many
from tlray.distributed.resources import TrialResources, trial_resources, worker_resources
from tlray.distributed.watchdog import expect_nodes_within
from tlray.errors import ClusterError, StorageError
from tlray.runs.prepare import with_absolute_locations

WRITTEN = ("storage", "activations.location", "data.prepared")
SECONDS_TO_LOOK = 60.0  # for the nodes to say what they see; one that starts no process in that time is not asked again
POLL_SECONDS = 1.0


def make_ready(config: RunConfig, say: Callable[[str], None]) -> TrialResources:
    """Wait for a node that holds a worker of a trial, then check what the nodes see; `say` is told of a wait."""
    expect_nodes_within(config.cluster.wait_minutes)
    cluster = cluster_summary(config.cluster)
    if cluster.most("CPU") > 0:
        trial_resources(config, cluster)  # refused before it waits for what can never come
    _wait_for_a_node(config, cluster, say)
    check_seen(_local_places(config), WRITTEN)
    return trial_resources(config, cluster_summary(config.cluster))


def _wait_for_a_node(config: RunConfig, cluster: ClusterSummary, say: Callable[[str], None]) -> None:
    """Ask for one worker's resources, which is what makes an autoscaler start a node."""
    worker = worker_resources(config.sweep, cluster)
    if any(how_many(node.resources, worker) for node in cluster.nodes):
        return
    minutes = config.cluster.wait_minutes
    say(f"waiting up to {minutes:g} min for a node with {describe(worker)}: there is {cluster.in_words()}")
    custom = dict(config.sweep.resources_per_worker)
    asked = _nothing.options(num_cpus=worker["CPU"], num_gpus=worker.get("GPU", 0), resources=custom)
    started = time.monotonic()
    answer = asked.remote()
    while not ray.wait([answer], timeout=POLL_SECONDS)[0]:
        if time.monotonic() - started > 60 * minutes:
            ray.cancel(answer, force=True)
            raise ClusterError(
                f"no node with {describe(worker)} came in {minutes:g} min (cluster.wait_minutes): there is "
                f"{cluster_summary(config.cluster).in_words()}; `ray status` says why, mostly a quota, a lack of spot "
                "instances or a wrong image"
            )
    say(f"a node came after {time.monotonic() - started:.0f} s")


def check_seen(places: Mapping[str, str], to_write: Collection[str]) -> None:
    """StorageError where one of `places`, local paths by field, is a folder that another node does not see.

    `to_write`: the fields of those that are written to. They are made where they are missing; others may be missing.
    """
    own = ray.get_runtime_context().get_node_id()
    others = [
        node for node in ray.nodes() if node["Alive"] and node["NodeID"] != own and node["Resources"].get("CPU", 0) > 0
    ]
    if not others:
        return
    token = f".tlray-{secrets.token_hex(8)}"
    written = [path for field, path in places.items() if field in to_write]
    try:
        for path in written:
            storage.check_writable(path)
            storage.write_text(storage.join(path, token), "")
        looked_for = {
            field: os.path.join(path, token) if path in written else path
            for field, path in places.items()
            if path in written or Path(path).exists()
        }
        if looked_for:
            _ask(others, looked_for, places)
    finally:
        for path in written:
            (Path(path) / token).unlink(missing_ok=True)


def _ask(nodes: list[dict], looked_for: Mapping[str, str], places: Mapping[str, str]) -> None:
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[_missing.options(num_cpus=0, scheduling_strategy=there).remote(dict(looked_for))] = node
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=SECONDS_TO_LOOK)
    blind: dict[str, list[str]] = {}
    for answer in answered:
        try:
            for field in ray.get(answer):
                blind.setdefault(field, []).append(asked[answer]["NodeManagerAddress"])
        except ray.exceptions.RayError:  # the node has gone: whoever comes in its place is asked by its first task
            continue
    for field, addresses in blind.items():
        raise StorageError(
            f"{field} {places[field]} is a folder of this machine, and {len(addresses)} of the {len(nodes)} other "
            f"nodes do not see it ({addresses[0]}): give an s3:// location, or a folder that all nodes share"
        )


def _local_places(config: RunConfig) -> dict[str, str]:
    """Locations on disk that work on other nodes reads or writes, by field."""
    config = with_absolute_locations(config)
    data = config.data
    named = {
        "storage": config.storage,
        "activations.location": config.activations.location,
        "data.prepared": data.prepared if data.prepare == "always" else None,
        "data.train": data.train,
        "data.val": data.val,
        "data.test": data.test,
        "data.synthetic.location": data.synthetic.location if data.synthetic is not None else None,
    }
    backbones = config.backbones if isinstance(config.backbones, tuple) else ()
    for backbone in (*backbones, config.baseline.backbone):
        if backbone.weights not in ("pretrained", "none"):
            named[f"weights of {backbone.id}"] = backbone.weights
    below = f"{config.storage}/"  # seen with it
    return {
        field: uri
        for field, uri in named.items()
        if uri is not None and not storage.is_remote(uri) and not uri.startswith(below)
    }


@ray.remote
def _nothing() -> None:
    """A node is there."""


@ray.remote
def _missing(paths: dict[str, str]) -> list[str]:
    return [field for field, path in paths.items() if not os.path.exists(path)]
