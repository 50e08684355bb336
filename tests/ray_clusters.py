"""Clusters of several nodes on this machine: one that its autoscaler grows and shrinks, and one of fixed nodes.

`ray.cluster_utils.AutoscalingCluster` would end every Ray of this machine (`ray stop`), and its base configuration is
not part of Ray's wheel: the fake multi-node provider behind it is started here by itself.
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # Ray's FAKE_HEAD_NODE_ID
NO_COMMANDS = (
    *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands"),
    *("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
)
RAY = str(Path(sys.executable).parent / "ray")
OBJECT_STORE = 80 * 2**20  # Ray's least is 75 MiB


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@dataclass(frozen=True)
class RunningCluster:
    """`environment` is what `ray.init(address=...)` and `ray job` need in a process of their own."""

    address: str
    environment: dict[str, str]
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)  # that this one has started


@contextlib.contextmanager
def autoscaling_cluster(node_types: dict[str, dict[str, Any]], *, idle_seconds: float) -> Iterator[RunningCluster]:
    """A head without CPUs and Ray's autoscaler over its fake provider, whose nodes are raylets of this machine.

    `node_types`: {name: {"resources": {"CPU": 1}, "max_workers": 4}}.
    """
    port, folder = free_port(), _new_folder()
    config = {
        "cluster_name": "fake",
        "max_workers": sum(kind["max_workers"] for kind in node_types.values()),
        "upscaling_speed": 10,
        "idle_timeout_minutes": idle_seconds / 60,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **{
                name: {
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": kind["max_workers"],
                    "resources": {**kind["resources"], "object_store_memory": OBJECT_STORE},
                }
                for name, kind in node_types.items()
            },
        },
        "head_node_type": "ray.head.default",
        "file_mounts": {},
        **{key: [] for key in NO_COMMANDS},
        "file_mounts_sync_continuously": False,
    }
    (folder / "autoscaler.yaml").write_text(json.dumps(config))
    cluster = RunningCluster(f"127.0.0.1:{port}", _environment(port), folder)
    fake = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    try:
        _start_head(cluster, fake, f"--autoscaling-config={folder / 'autoscaler.yaml'}")
        yield cluster
    finally:
        _remove(cluster)


@contextlib.contextmanager
def fixed_cluster(num_cpus: int = 0) -> Iterator[RunningCluster]:
    """A head, by default without CPUs; `start_worker` adds nodes. A node that is lost is noticed in seconds."""
    port = free_port()
    quick = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
    cluster = RunningCluster(f"127.0.0.1:{port}", _environment(port) | quick, _new_folder())
    try:
        _start_head(cluster, {}, num_cpus=num_cpus)
        yield cluster
    finally:
        _remove(cluster)


def start_worker(cluster: RunningCluster, *, num_cpus: int, within: tuple[str, ...] = ()) -> psutil.Process:
    """One more raylet, with an address and with all its processes below the returned one.

    `within`: a command to start it in.
    """
    before = len(raylets(cluster.folder))
    command = [
        *(*within, RAY, "start", f"--address={cluster.address}", "--block", f"--node-ip-address=127.0.0.{before + 1}"),
        *(f"--num-cpus={num_cpus}", f"--object-store-memory={OBJECT_STORE}", *_free_ports()),
    ]
    return psutil.Process(_start(cluster, command, cluster.environment, num_raylets=before + 1).pid)


def kill_node(node: psutil.Process) -> None:
    """As if its power was cut: no process of it gets to say goodbye."""
    for process in [node, *node.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _new_folder() -> Path:
    folder = Path("/tmp") / f"ray-{os.getpid()}-{secrets.token_hex(2)}"  # short: socket paths are limited
    folder.mkdir()
    return folder


def _environment(port: int) -> dict[str, str]:
    return {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",  # `ray start` says in its log that it is done
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ADDRESS": f"127.0.0.1:{port}",
    }


def _free_ports() -> tuple[str, ...]:
    """Raylets of one machine must not look for ports in the same places."""
    agents = (f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}")
    return (*agents, "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats")


def _start_head(cluster: RunningCluster, more: dict[str, str], *options: str, num_cpus: int = 0) -> None:
    port = cluster.address.rpartition(":")[2]
    command = [
        *(RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", f"--num-cpus={num_cpus}"),
        *(f"--temp-dir={cluster.folder}", "--include-dashboard=False", f"--ray-client-server-port={free_port()}"),
        *(f"--object-store-memory={OBJECT_STORE}", *_free_ports(), *options),
    ]
    environment = {name: value for name, value in cluster.environment.items() if name != "RAY_ADDRESS"}
    _start(cluster, command, environment | more, num_raylets=1)


def _start(
    cluster: RunningCluster, command: list[str], environment: dict[str, str], num_raylets: int
) -> subprocess.Popen[bytes]:
    """Until the node has joined, as the cluster's `num_raylets`-th."""
    log = cluster.folder / f"node-{num_raylets}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    cluster.processes.append(process)
    deadline = time.monotonic() + 60
    while "Ray runtime started" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    return process


def _remove(cluster: RunningCluster) -> None:
    """Not `ray stop`, which would end every Ray of this machine."""
    _kill_all_that_name(str(cluster.folder), cluster.address)
    for process in cluster.processes:
        process.kill()
        process.wait(timeout=60)
    shutil.rmtree(cluster.folder, ignore_errors=True)


def _kill_all_that_name(*words: str) -> None:
    """Every process with one of `words` in its command line, and those that it has started."""
    ours = []
    for process in psutil.process_iter(["cmdline"]):
        if any(word in " ".join(process.info["cmdline"] or []) for word in words):
            with contextlib.suppress(psutil.NoSuchProcess):
                ours += [process, *process.children(recursive=True)]
    for process in ours:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@dataclass
class NodeWatch:
    """Counts this machine's raylets of one cluster, without being part of it: how many workers, for how long."""

    folder: Path
    seen: list[tuple[float, int]] = field(default_factory=list)  # (seconds since the start, workers)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "NodeWatch":
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.seen.append((time.monotonic() - self._started, self.workers()))

    def workers(self) -> int:
        """Raylets beside the head's own."""
        return len(raylets(self.folder)) - 1

    @property
    def most(self) -> int:
        return max(count for _, count in self.seen)

    @property
    def node_seconds(self) -> float:
        """Of all workers together: what a cloud would bill."""
        times = [0.0, *(moment for moment, _ in self.seen)]
        return sum((after - before) * count for before, (after, count) in zip(times, self.seen, strict=False))


def raylets(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or [""]
        if command[0].endswith("/raylet") and str(folder) in " ".join(command):
            found.append(process)
    return found
