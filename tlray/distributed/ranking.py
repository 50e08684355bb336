"""Backbones are ranked on the cluster: a subset's features into the store of activations, then a task a backbone.

    ranking, manifest = rank_on_cluster(config, folder, progress)

`folder` becomes a run folder of its own, with the subset as its images. Its name marks the shards that it computes.
"""

import time
from collections.abc import Callable

import ray

from tlray.activations.charges import shard_mark
from tlray.activations.keys import ActivationKey
from tlray.activations.location import open_store
from tlray.config import RunConfig
from tlray.data.images import Images
from tlray.data.manifest import Manifest
from tlray.distributed.activation_pass import compute_activations
from tlray.distributed.cluster import cluster_summary
from tlray.distributed.errors import reason_of
from tlray.distributed.on_cluster import plan_ranking_on_cluster
from tlray.distributed.resources import TaskResources, cpu_tasks, model_tasks
from tlray.distributed.tasks import score_task
from tlray.ranking.result import RankedBackbone, Ranking, make_ranking
from tlray.runs.prepare import Run, finish, prepare_run


def rank_on_cluster(
    config: RunConfig, folder: str, progress: Callable[[int, int], None]
) -> tuple[RunConfig, Ranking, Manifest]:
    """(the configuration's backbones and data resolved, what was found of them, the manifest of all images).

    `progress` is told of (images through a prefix, of how many). A backbone that has no features has a row that says
    why; BackboneError when none has any.
    """
    started = time.monotonic()
    planned, manifest = plan_ranking_on_cluster(config)
    run = prepare_run(planned, folder)
    store, cluster = open_store(run.config), cluster_summary(config.cluster)
    keys = [ActivationKey(**fields) for source in run.plan.activations for fields in source.keys]
    with store.lease(shard_mark(run.uri), keys):
        failures = compute_activations(run, store, model_tasks(config.sweep, cluster), progress)
        rows = _scored(run, failures, cpu_tasks(cluster))
    assert isinstance(run.manifest.images, Images)
    ranking = make_ranking(rows, config.ranking, run.manifest.images.labels, time.monotonic() - started)
    ranking = ranking.model_copy(update={"warnings": manifest.warnings})
    finish(run)
    resolved = config.model_copy(update={"backbones": run.config.chosen_backbones, "data": run.config.data})
    return resolved, ranking, manifest


def _scored(run: Run, failures: dict[str, str], resources: TaskResources) -> list[RankedBackbone]:
    """A row for each backbone; `failures` by id: why activations could not be made."""
    task = score_task.options(**resources.options, max_retries=run.config.sweep.max_failures)
    waiting = [
        task.remote(run.uri, position, resources.threads) for position in range(len(run.config.chosen_backbones))
    ]
    rows = []
    for backbone, reference in zip(run.config.chosen_backbones, waiting, strict=True):
        try:
            row: RankedBackbone = ray.get(reference)
        except ray.exceptions.RayError as error:
            row = RankedBackbone(backbone=backbone, error=reason_of(error))
        if row.error is not None:
            row = row.model_copy(update={"error": failures.get(backbone.id, row.error)})
        rows.append(row)
    return rows
