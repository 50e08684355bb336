"""What runs in Ray's worker processes beside trials: plans, chunks of the activation pass, scores, groups of probes.

Neither Ray Tune nor Ray Train is imported here: a sweep of linear probes gets by without them. The driver imports no
torch, so these processes are the first to do it, and Ray hands the same process one task after the other.
"""

import importlib
import os
import queue
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import ray

from tlray import storage
from tlray.activations.charges import shard_mark
from tlray.activations.chunks import Chunk
from tlray.config import DataConfig, RunConfig, TrialConfig
from tlray.data.manifest import Manifest
from tlray.data.sources import Entry
from tlray.errors import StorageError, TrialError
from tlray.ranking.result import Ranking
from tlray.runs import prepare
from tlray.runs.budget.machines import Machines
from tlray.runs.prepare import Run, load_run


@ray.remote
def plan_task(
    config: RunConfig, machines: Machines, manifest: Manifest | None = None, ranking: Ranking | None = None
) -> Any:
    """The PlannedRun of a configuration."""
    machines = _timed(machines)
    from tlray.planning.planner import plan_run

    return plan_run(config, machines, manifest, ranking)


@ray.remote
def plan_ranking_task(config: RunConfig, machines: Machines) -> Any:
    """The PlannedRun of a ranking's features, and the Manifest of all images."""
    machines = _timed(machines)
    from tlray.planning.planner import plan_ranking

    return plan_ranking(config, machines)


@ray.remote
def select_task(config: RunConfig) -> RunConfig:
    """The configuration with the backbones that its query finds."""
    take_given_gpu()
    from tlray.catalogue.select import select_backbones

    return select_backbones(config)


@ray.remote
def score_task(run_uri: str, position: int, num_threads: int) -> Any:
    """The RankedBackbone of one of the configuration's backbones."""
    storage.be_patient()
    import torch

    from tlray.ranking.backbone import rank_backbone

    torch.set_num_threads(num_threads)
    take_given_gpu()
    return rank_backbone(_load_run(run_uri), position)


@ray.remote
def prepare_task(data: DataConfig, entries: list[Entry], num_threads: int) -> int:
    """Reads some images of one location and keeps them in shards -> how many there were, unreadable ones included."""
    storage.be_patient()
    from tlray.data.inspect import inspect
    from tlray.data.prepared import open_prepared
    from tlray.data.sources import open_source

    shards = open_prepared(data)
    assert shards is not None
    locations = {"data.train": data.train, "data.val": data.val, "data.test": data.test}
    source = open_source(entries[0].field, locations[entries[0].field] or "", data)
    with shards.writer(max_side=data.max_side) as writer:
        threads = max(num_threads, data.num_threads)
        return sum(1 for _ in inspect(source, entries, known={}, num_threads=threads, keep=writer.add))


@ray.remote
def chunk_task(run_uri: str, chunks: Sequence[Chunk], num_threads: int) -> Any:
    """Computes and commits some chunks of activations, one behind the other -> a ChunkOutcome for each."""
    storage.be_patient()
    import torch

    from tlray.activations.compute import PassSettings, compute_chunks
    from tlray.activations.location import open_store
    from tlray.data.cache import PROCESS_CACHE
    from tlray.data.read import image_reader
    from tlray.process.device import given_device

    take_given_gpu()
    torch.set_num_threads(1 if given_device().type == "cuda" else num_threads)  # there the cores are for decoding
    run = _load_run(run_uri)
    # An image belongs to one chunk: it is decoded once for all of the chunk's draws, and never wanted again.
    several = any(len(chunk.draws) > 1 for chunk in chunks)
    PROCESS_CACHE.resize(run.config.data.memory_cache_mb * 2**20 if several else 0)
    settings = PassSettings(
        num_classes=len(run.manifest.classes),
        run=shard_mark(run_uri),
        device=given_device(),
        num_threads=max(num_threads, run.config.data.num_threads),
        read=image_reader(run.config.data),
    )
    computed = compute_chunks(chunks, run.manifest.find, open_store(run.config), settings)
    outcomes = [outcome for _, outcome in computed]
    PROCESS_CACHE.resize(0)
    return outcomes


@ray.remote(num_returns="streaming")
def probe_group_task(run_uri: str, trial_ids: list[str], num_threads: int) -> Iterator[Any]:
    """Trains linear probes as one batched head; yields lists of (trial id, EpochMetrics), then TrialResults."""
    storage.be_patient()
    import torch

    from tlray.training.probe_group import run_probe_group
    from tlray.training.run_images import run_images
    from tlray.training.trial import release_memory
    from tlray.training.worker import local_worker

    torch.set_num_threads(num_threads)
    take_given_gpu()
    trials = [load_trial(run_uri, trial_id) for trial_id in trial_ids]
    reports: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        group = pool.submit(
            run_probe_group,
            trials,
            run_uri,
            local_worker(),
            run_images(run_uri),
            lambda trial_id, metrics: reports.put((trial_id, metrics)),
        )
        group.add_done_callback(lambda _: reports.put(None))
        while (first := reports.get()) is not None:
            several = [first]
            while not reports.empty() and (more := reports.get()) is not None:
                several.append(more)
            yield several
            if group.done() and reports.empty():
                break
        results = group.result()
    release_memory()
    yield results


@ray.remote
def conclude_task(run_uri: str, trial_id: str, num_threads: int) -> Any:
    """Scores a trial that the scheduler stopped -> TrialResult."""
    storage.be_patient()
    import torch

    from tlray.training.run_images import run_images
    from tlray.training.trial import conclude_stopped_trial
    from tlray.training.worker import local_worker

    torch.set_num_threads(num_threads)
    take_given_gpu()
    return conclude_stopped_trial(load_trial(run_uri, trial_id), run_uri, local_worker(), run_images(run_uri))


def load_trial(run_uri: str, trial_id: str) -> TrialConfig:
    _check_shared(run_uri)
    return prepare.load_trial(run_uri, trial_id)


def take_given_gpu() -> None:
    """This process keeps to the GPU that Ray has reserved for its task, and to the CPU where it reserved none.

    TrialError where torch does not see the GPU: the work would go on, on the CPU, for days.
    """
    import torch

    from tlray.process.device import withhold_gpus

    given = bool(ray.get_gpu_ids())
    withhold_gpus(not given)
    if given and not torch.cuda.is_available():
        raise TrialError(
            f"node {_here()} has given this process GPU {ray.get_gpu_ids()[0]}, and torch {torch.__version__} sees "
            "none: install a torch for its driver's CUDA there, or set sweep.gpus_per_worker=0"
        )


def _check_shared(run_uri: str) -> None:
    """StorageError on a node that came after the driver had asked all nodes, and does not see the run folder."""
    if not storage.is_remote(run_uri) and not os.path.isdir(run_uri):
        raise StorageError(
            f"node {_here()} does not see {run_uri}, a folder of the machine where the run was started: "
            "give an s3:// location as storage, or a folder that all nodes share"
        )


def _here() -> str:
    return ray.util.get_node_ip_address()


@lru_cache(maxsize=1)
def _load_run(run_uri: str) -> Run:
    _check_shared(run_uri)
    return load_run(run_uri)


def _timed(machines: Machines) -> Machines:
    """With what importing, and CUDA's start, takes this process: it will take those of the trials as long."""
    is_fresh, started = "torch" not in sys.modules, time.perf_counter()
    importlib.import_module("tlray.planning.speed.steps")
    process_seconds = time.perf_counter() - started
    from tlray.process.began import load
    from tlray.process.device import given_device, start_seconds

    take_given_gpu()
    machines = machines.model_copy(update={"device_seconds": start_seconds(given_device()), "load": load()})
    return machines.model_copy(update={"process_seconds": process_seconds}) if is_fresh else machines
