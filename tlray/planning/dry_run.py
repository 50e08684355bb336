"""What a command would do, for `--dry-run`. Nothing is trained, computed or written.

console.print(dry_run_of_resume(load_run(run_uri)))
"""

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tlray.runs.budget.estimate import frozen_seconds, sweep_seconds
from tlray.runs.budget.machines import Machines
from tlray.runs.plan import Plan, activation_table, in_words, plan_tables
from tlray.runs.prepare import Run
from tlray.runs.trials import load_results

NOTHING_STARTED = "dry run: nothing was started"


def dry_run_of_plan(plan: Plan) -> Group:
    return Group(plan_tables(plan), Text(NOTHING_STARTED))


def dry_run_of_features(plan: Plan) -> Group:
    """What goes through each frozen prefix, and how long that is expected to take; these commands train nothing."""
    machines = plan.estimate.machines if plan.estimate is not None else Machines(concurrent_trials=1)
    frozen = frozen_seconds((source for source in plan.activations if source.materialise), machines)
    line = f"expected: {in_words(frozen)} of frozen work"
    return Group(activation_table(plan), Text(line), Text(NOTHING_STARTED))


def dry_run_of_resume(run: Run) -> Group:
    """Every trial with how far it is, and how long the rest is expected to take."""
    rows = {result.trial_id: result for result in load_results(run.uri)}
    table = Table(box=None, pad_edge=False)
    for column in ("trial", "now", "resume"):
        table.add_column(column)
    left = []
    for trial in run.trials:
        row = rows.get(trial.trial_id)
        if row is None or row.status == "failed":
            left.append(trial.trial_id)
        state = "no row yet" if row is None else row.status + (f": {row.error}" if row.error else "")
        table.add_row(trial.trial_id, escape(state), "runs it" if trial.trial_id in left else "leaves it")
    lines = [f"{len(left)} of {len(run.trials)} trials are left"]
    if run.plan.estimate is not None and left:
        costs = [cost for cost in run.plan.estimate.costs if cost.trial_id in left]
        seconds = sweep_seconds(costs, run.plan.activations, run.plan.estimate.machines)
        lines.append(f"expected: at most {in_words(seconds)} for them; epochs and activations that are kept count less")
    return Group(table, *map(Text, lines), Text(NOTHING_STARTED))
