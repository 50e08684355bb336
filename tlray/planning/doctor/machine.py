"""This machine: GPUs as torch and Ray see them, open files, shared memory, main memory."""

import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psutil

from tlray.config import RunConfig
from tlray.planning.doctor.check import Check, gib
from tlray.planning.doctor.packages import TorchFacts, describe_gpus

MIN_OPEN_FILES = 8192  # Ray keeps a socket per worker and per peer open, and raises the soft limit to the hard one
# Ray's object store lies in /dev/shm: by default 30% of the memory, shrunk to fit, but never below 10 GB for that.
OBJECT_STORE_SHARE = 0.3
OBJECT_STORE_SHRINKS_TO = 10**10
CGROUP_MEMORY = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class Cluster(Protocol):
    """What Ray counts on all nodes together (tlray.distributed.resources.ClusterSummary)."""

    @property
    def num_nodes(self) -> int: ...
    @property
    def cpus(self) -> float: ...
    @property
    def gpus(self) -> float: ...
    @property
    def memory_bytes(self) -> float: ...


class Resources(Protocol):
    """What a trial takes of the cluster (tlray.distributed.resources.TrialResources)."""

    @property
    def num_workers(self) -> int: ...
    @property
    def gpus(self) -> float: ...
    @property
    def concurrent(self) -> int: ...
    @property
    def nested(self) -> bool: ...


FitTrial = Callable[[RunConfig, Cluster], Resources]


def memory_bytes() -> tuple[int, int]:
    """(total, available) main memory for this process: the machine's, or less where a container limits it."""
    machine = psutil.virtual_memory()
    for path in CGROUP_MEMORY:
        text = path.read_text().strip() if path.is_file() else "max"
        if text != "max" and int(text) < machine.total:
            return int(text), min(machine.available, int(text))
    return machine.total, machine.available


def check_cluster(summarise: Callable[[], Cluster]) -> tuple[Check, Cluster | None]:
    """Whether Ray answers, and with what."""
    try:
        cluster = summarise()
    except Exception as error:  # whatever goes wrong in Ray is this check's finding
        detail = f"no cluster answers: {type(error).__name__}: {' '.join(str(error).split())}"
        remedy = "see `ray status`; without RAY_ADDRESS a local Ray is started, which needs /tmp and free ports"
        return Check("Ray", "problem", detail, remedy), None
    detail = (
        f"{cluster.num_nodes} node(s) with {cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs, "
        f"{gib(cluster.memory_bytes)} for tasks"
    )
    return Check("Ray", "ok", detail), cluster


def check_gpus(facts: TorchFacts, cluster: Cluster | None) -> Check:
    """GPUs that are here but unseen by torch or by Ray."""
    seen = describe_gpus(facts)
    if not facts.gpus and shutil.which("nvidia-smi"):
        reason = "is a CPU-only build" if facts.cuda is None else f"was built for CUDA {facts.cuda}"
        remedy = "install a torch build for the driver's CUDA version, or update the driver; see `nvidia-smi`"
        return Check("GPUs", "warning", f"a GPU driver is installed, but torch {facts.torch} {reason}", remedy)
    if cluster is None:
        return Check("GPUs", "ok", f"torch sees {seen} on this machine")
    if facts.gpus and cluster.num_nodes == 1 and cluster.gpus < len(facts.gpus):
        detail = f"torch sees {seen} on this machine, Ray counts {cluster.gpus:g}"
        return Check("GPUs", "warning", detail, f"start Ray with `ray start --head --num-gpus={len(facts.gpus)}`")
    return Check("GPUs", "ok", f"torch sees {seen} on this machine, Ray counts {cluster.gpus:g} in the cluster")


def check_open_files(hard_limit: int | None = None) -> Check:
    """The number of files that a process may have open."""
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if hard_limit is None else hard_limit
    if hard_limit == resource.RLIM_INFINITY or hard_limit >= MIN_OPEN_FILES:
        shown = "unlimited" if hard_limit == resource.RLIM_INFINITY else str(hard_limit)
        return Check("open files", "ok", f"at most {shown} per process")
    remedy = "raise it (`ulimit -Hn`, LimitNOFILE of the service, --ulimit nofile of the container)"
    return Check("open files", "warning", f"at most {hard_limit} per process; Ray wants {MIN_OPEN_FILES}", remedy)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Whether Ray's object store finds room in shared memory; else it falls back to slower files in /tmp."""
    if not folder.is_dir():
        return Check("shared memory", "ok", f"there is no {folder} on this system; Ray uses files")
    size = shutil.disk_usage(folder).total
    wanted = min(OBJECT_STORE_SHARE * memory_bytes()[0], max(OBJECT_STORE_SHRINKS_TO, 0.95 * size))
    if size >= wanted:
        return Check("shared memory", "ok", f"{gib(size)} at {folder}")
    detail = f"{gib(size)} at {folder}; Ray's object store takes {gib(wanted)} and falls back to slow files in /tmp"
    remedy = f"start the container with --shm-size={wanted / 1e9:.1f}g, or Ray with a smaller --object-store-memory"
    return Check("shared memory", "warning", detail, remedy)
