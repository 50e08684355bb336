"""Whether a budget holds a run at all, said before anything is spent. No torch here.

check_start(config, load=1.0, spent=0.3)          # at once; ConfigError where it does not
seconds = time_to_plan(config, load=1.0, spent=9.0)
planned = within_budget(planned, spent=22.0)
"""

import dataclasses
import math

from tlray.config import RunConfig
from tlray.errors import ConfigError
from tlray.runs.budget.choice import beyond_budget, least_seconds, limit_seconds
from tlray.runs.budget.estimate import START_SECONDS, estimate_run, reserved_seconds, soonest_end
from tlray.runs.plan import PlannedRun, in_words


def check_start(config: RunConfig, load: float, spent: float) -> None:
    """ConfigError for a budget that is less than any run takes; `load`: of the machine now."""
    needed = load * START_SECONDS + soonest_end(config.export, load)
    if spent + needed > limit_seconds(config):
        raise ConfigError(
            f"{_given(config)} is too small: start, plan, export and report are expected to take "
            f"{in_words(spent + needed)} whatever is trained; give at least {_least(config, spent + needed)}"
        )


def time_to_plan(config: RunConfig, load: float, spent: float) -> float | None:
    """Seconds that a plan may take for the run to end in time; None without a limit."""
    limit = limit_seconds(config)
    return None if math.isinf(limit) else max(0.0, limit - spent - soonest_end(config.export, load))


def too_slow(config: RunConfig, spent: float) -> ConfigError:
    """The refusal of a run whose plan would not be made in time."""
    least = _least(config, 2 * spent + soonest_end(config.export, 1.0))
    return ConfigError(
        f"{_given(config)} is too small: start and plan have taken {in_words(spent)} and go on; give at least {least}, "
        "or fewer backbones"
    )


def within_budget(planned: PlannedRun, spent: float) -> PlannedRun:
    """The plan with the trials dropped that there is no time for after `spent` seconds of the command.

    ConfigError where not even the baseline, the shortest other trial, exports and report fit.
    """
    config, trials, plan = planned.config, planned.trials, planned.plan
    estimate, limit = plan.estimate, limit_seconds(config)
    if estimate is None or math.isinf(limit):
        return planned
    machines = estimate.machines
    needed = least_seconds(trials, estimate.costs, plan.activations, machines)
    needed += reserved_seconds(config.export, machines)
    if spent + needed > limit:
        raise ConfigError(_too_small(planned, spent, needed))
    dropped = beyond_budget(config, trials, estimate.costs, plan.activations, machines, spent)
    fitting = estimate_run(plan.activations, estimate.costs, dropped, machines, config.export, config.prices)
    return dataclasses.replace(planned, plan=plan.model_copy(update={"estimate": fitting}))


def _too_small(planned: PlannedRun, spent: float, needed: float) -> str:
    config = planned.config
    return (
        f"{_given(config)} is too small: start and plan took {in_words(spent)}, and the baseline, the shortest other "
        f"trial, export and report are expected to take {in_words(needed)} more; give at least "
        f"{_least(config, spent + needed)}, or shorten baseline.training.epochs"
    )


def _is_cost(config: RunConfig) -> bool:
    """Whether the cost is the tighter limit."""
    return config.budget.hours is None or limit_seconds(config) < config.budget.hours * 3600


def _given(config: RunConfig) -> str:
    return f"budget.cost {config.budget.cost:g}" if _is_cost(config) else f"budget.hours {config.budget.hours:g}"


def _least(config: RunConfig, seconds: float) -> str:
    """A value of the same field that is enough for so many seconds."""
    if _is_cost(config):
        assert config.prices is not None, "the configuration checks that"
        return f"{_rounded_up(config.prices.cost_of(seconds)):g}"
    return f"{_rounded_up(seconds / 3600):g}"


def _rounded_up(number: float) -> float:
    """To two digits."""
    step = 10.0 ** (math.floor(math.log10(number)) - 1)
    return math.ceil(number / step) * step
