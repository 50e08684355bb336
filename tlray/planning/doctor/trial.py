"""Whether the largest trial of a run fits: into the cluster, a node's memory, a GPU's memory, the disk."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tlray import storage
from tlray.config import BackboneConfig, RunConfig, TrialConfig
from tlray.config.search_space import list_trials
from tlray.errors import InputError
from tlray.models.backbone import Backbone, build_backbone
from tlray.planning.doctor.check import Check, gib
from tlray.planning.doctor.machine import Cluster, FitTrial, Resources, memory_bytes
from tlray.planning.doctor.packages import TorchFacts
from tlray.planning.footprint import CUDA_CONTEXT_BYTES, DRIVER_BYTES, PROCESS_BYTES, Footprint, trial_footprint

NUM_CLASSES = 1000  # assumed: the images have not been looked at, and more classes only make a head larger
NUM_EXPORT_FORMATS = 3


@dataclass(frozen=True)
class Measured:
    """A trial with its footprint."""

    trial: TrialConfig
    footprint: Footprint


def check_resources(config: RunConfig, cluster: Cluster, fit_trial: FitTrial) -> tuple[Check, Resources | None]:
    """Whether one trial fits the cluster, and how many do at once."""
    try:
        resources = fit_trial(config, cluster)
    except InputError as error:
        return Check("trials at once", "problem", str(error)), None
    return Check("trials at once", "ok", f"{resources.concurrent} on the cluster"), resources


def check_trials(
    config: RunConfig, facts: TorchFacts, cluster: Cluster | None, resources: Resources | None
) -> Iterator[Check]:
    """Memory, GPU memory and disk for the trials, from a model of what one needs (tlray/planning/footprint.py)."""
    num_workers = config.sweep.workers_per_trial
    try:
        measured = _measure(config, num_workers)
    except InputError as error:
        yield Check("trials", "problem", str(error))
        return
    on_gpu = bool(facts.gpus) if resources is None else resources.gpus > 0
    yield _check_memory(config, measured, on_gpu, cluster, resources)
    if on_gpu and facts.gpus:
        yield _check_gpu_memory(measured, facts, resources)
    yield _check_disk(config, measured)


def _measure(config: RunConfig, num_workers: int) -> list[Measured]:
    """Every trial that differs in what it needs, with its footprint; weights are random, sizes are the same."""
    models: dict[str, Backbone] = {}
    measured: dict[str, Measured] = {}
    for trial in list_trials(config):
        backbone = trial.backbone.model_copy(update={"weights": "none"})
        key = backbone.model_dump_json()
        if key not in models:
            models[key] = build_backbone(BackboneConfig.model_validate_json(key), NUM_CLASSES)
        measured[trial.trial_id] = Measured(trial, trial_footprint(trial, models[key], num_workers))
    return list(measured.values())


def _check_memory(
    config: RunConfig, measured: list[Measured], on_gpu: bool, cluster: Cluster | None, resources: Resources | None
) -> Check:
    largest = max(measured, key=lambda item: item.footprint.memory_bytes)
    # With a GPU only the weights pass through the process's own memory.
    model_bytes = largest.footprint.weights if on_gpu else largest.footprint.memory_bytes
    worker_bytes = PROCESS_BYTES + config.data.memory_cache_mb * 2**20 + model_bytes
    trial_bytes = config.sweep.workers_per_trial * worker_bytes
    if resources is not None and resources.nested:
        trial_bytes += DRIVER_BYTES
    num_nodes = cluster.num_nodes if cluster is not None else 1
    at_once = math.ceil(resources.concurrent / num_nodes) if resources is not None else 1
    total, available = memory_bytes()
    detail = (
        f"{largest.trial.trial_id} takes about {gib(trial_bytes)} "
        f"(model {gib(model_bytes)}, image cache {config.data.memory_cache_mb} MiB per worker), "
        f"{at_once} at once {gib(at_once * trial_bytes)}; this machine has {gib(available)} free of {gib(total)}"
    )
    if at_once * trial_bytes <= available:
        return Check("memory", "ok", detail)
    remedy = "lower training.batch_size, data.memory_cache_mb or sweep.max_concurrent_trials"
    return Check("memory", "problem" if at_once * trial_bytes > total else "warning", detail, remedy)


def _check_gpu_memory(measured: list[Measured], facts: TorchFacts, resources: Resources | None) -> Check:
    largest = max(measured, key=lambda item: item.footprint.memory_bytes)
    per_gpu = 1 if resources is None or resources.gpus >= 1 else int(1 / resources.gpus)
    needed = per_gpu * (CUDA_CONTEXT_BYTES + largest.footprint.memory_bytes)
    gpu, size = min(facts.gpus, key=lambda item: item[1])
    detail = f"{largest.trial.trial_id} takes about {gib(needed / per_gpu)}, {per_gpu} on a {gpu} of {gib(size)}"
    if needed <= size:
        return Check("GPU memory", "ok", detail)
    remedy = "lower training.batch_size, raise sweep.gpus_per_worker, or set training.precision to bfloat16"
    return Check("GPU memory", "problem", detail, remedy)


def _check_disk(config: RunConfig, measured: list[Measured]) -> Check:
    checkpoints = sum(item.footprint.disk_bytes for item in measured)
    exports = config.export.top_k * NUM_EXPORT_FORMATS * max(item.footprint.weights for item in measured)
    needed = checkpoints + exports
    uri = storage.absolute(config.storage)
    detail = f"checkpoints of {len(measured)} trials and {config.export.top_k} export(s) take up to {gib(needed)}"
    if storage.is_remote(uri):
        return Check("disk", "ok", f"{detail} in {uri}")
    existing = next(folder for folder in (Path(uri), *Path(uri).parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{detail}; {gib(free)} free at {existing}"
    if needed <= free:
        return Check("disk", "ok", detail)
    return Check("disk", "problem", detail, "free some, or choose another `storage`")
