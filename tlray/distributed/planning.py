"""Planning in a worker process of the driver's node: the driver itself never imports torch.

planned = plan_on_cluster(config)
"""

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tlray.config import RunConfig
from tlray.distributed.errors import cause_of, reason_of
from tlray.distributed.resources import cluster_summary, trial_resources
from tlray.distributed.tasks import plan_task
from tlray.errors import TlrayError, TrialError
from tlray.plan import PlannedRun
from tlray.prepare import with_absolute_locations


def plan_on_cluster(config: RunConfig) -> PlannedRun:
    """`tlray.planning.plan_run` beside the driver, where relative and local paths mean what the user meant.

    The process then goes on to the activation pass, with torch imported and the machine's caches warm.
    """
    config = with_absolute_locations(config)  # the worker's working folder may be another
    slots = trial_resources(config, cluster_summary()).concurrent
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    try:
        return ray.get(plan_task.options(num_cpus=0, max_retries=0, scheduling_strategy=here).remote(config, slots))
    except ray.exceptions.RayError as error:
        cause = cause_of(error)
        if isinstance(cause, TlrayError):
            raise cause from None
        raise TrialError(f"planning broke down: {reason_of(error)}") from error
