"""`tlray doctor`: what is wrong, said before money is spent.

    checks = run_checks(None)                                        # the installation and this machine
    checks = run_checks(config, cluster_summary, trial_resources)    # and what a run of `config` needs

The two functions are those of tlray.distributed.resources; they are passed in because Ray stays over there.
"""

from collections.abc import Callable, Iterator

from tlray.config import RunConfig
from tlray.errors import InputError
from tlray.planning.doctor.check import Check, checks_table
from tlray.planning.doctor.machine import (
    Cluster,
    FitTrial,
    check_cluster,
    check_gpus,
    check_open_files,
    check_shared_memory,
)
from tlray.planning.doctor.packages import TorchFacts, check_packages, check_python, check_torch, read_needs

__all__ = ["Check", "checks_table", "run_checks"]


def run_checks(
    config: RunConfig | None,
    cluster_summary: Callable[[], Cluster] | None = None,
    fit_trial: FitTrial | None = None,
) -> list[Check]:
    """Every check in the order in which their failures explain each other.

    Without `cluster_summary` Ray is not asked; without a working torch nothing that needs a model is checked.
    """
    needs = read_needs()
    checks = [check_python(needs), check_packages(needs)]
    torch_check, facts = check_torch(needs)
    checks += [torch_check, check_open_files(), check_shared_memory()]
    cluster = None
    if cluster_summary is not None:
        ray_check, cluster = check_cluster(cluster_summary)
        checks.append(ray_check)
    if facts is None:
        checks.append(Check("the rest", "warning", "not looked at: it needs torch and torchvision"))
        return checks
    checks.append(check_gpus(facts, cluster))
    if config is not None:
        checks += _check_run(config, facts, cluster, fit_trial)
    return checks


def _check_run(
    config: RunConfig, facts: TorchFacts, cluster: Cluster | None, fit_trial: FitTrial | None
) -> Iterator[Check]:
    # Imported here because they import torch, which is known to work only now.
    from tlray.catalogue.select import select_backbones
    from tlray.planning.doctor.locations import check_contents, check_images, check_s3, check_storage, check_weights
    from tlray.planning.doctor.trial import check_resources, check_trials

    try:
        config = select_backbones(config)
    except InputError as error:
        yield Check("backbones", "problem", str(error))
        return
    yield from check_s3(config)
    yield from check_storage(config)
    yield from check_images(config)
    yield from check_contents(config)
    yield from check_weights(config)
    resources = None
    if cluster is not None and fit_trial is not None:
        check, resources = check_resources(config, cluster, fit_trial)
        yield check
    yield from check_trials(config, facts, cluster, resources)
