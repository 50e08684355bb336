"""Planning in a worker process of the driver's node: the driver itself never imports torch.

planned = plan_on_cluster(config)
"""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tlray.config import RunConfig
from tlray.data.manifest import Manifest
from tlray.distributed.errors import cause_of, reason_of
from tlray.distributed.resources import cluster_summary, trial_resources
from tlray.distributed.tasks import plan_ranking_task, plan_task, select_task
from tlray.errors import TlrayError, TrialError
from tlray.plan import PlannedRun
from tlray.prepare import with_absolute_locations
from tlray.ranking.result import Ranking


def plan_on_cluster(config: RunConfig, manifest: Manifest | None = None, ranking: Ranking | None = None) -> PlannedRun:
    """`tlray.planning.plan_run` beside the driver, where relative and local paths mean what the user meant.

    The process then goes on to the activation pass, with torch imported and the machine's caches warm.
    """
    slots = trial_resources(config, cluster_summary()).concurrent
    return _planned_here(plan_task, with_absolute_locations(config), slots, manifest, ranking)


def plan_ranking_on_cluster(config: RunConfig) -> tuple[PlannedRun, Manifest]:
    """`tlray.planning.plan_ranking` likewise."""
    slots = trial_resources(config, cluster_summary()).concurrent
    return _planned_here(plan_ranking_task, with_absolute_locations(config), slots)


def select_on_cluster(config: RunConfig) -> RunConfig:
    """`tlray.catalogue.select.select_backbones` likewise; a list of ids is an answer already."""
    return config if isinstance(config.backbones, tuple) else _planned_here(select_task, config)


def _planned_here(task: Any, *arguments: Any) -> Any:
    """Locations must be absolute: the worker's working folder may be another."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    try:
        return ray.get(task.options(num_cpus=0, max_retries=0, scheduling_strategy=here).remote(*arguments))
    except ray.exceptions.RayError as error:
        cause = cause_of(error)
        if isinstance(cause, TlrayError):
            raise cause from None
        raise TrialError(f"planning broke down: {reason_of(error)}") from error
