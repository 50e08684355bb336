"""Commands that plan, make and go on with runs."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from tlray.cli.common import (
    ConfigArgument,
    DryRun,
    Json,
    Overrides,
    RunArgument,
    app,
    load_checked,
    out,
    print_run,
    show,
)
from tlray.process.console import PlainConsole, say

if TYPE_CHECKING:
    from tlray.config import RunConfig
    from tlray.runs.plan import Plan


@app.command()
def demo(
    storage: Annotated[str, typer.Option(help="where the demo's images, weights and run are kept")] = "~/tlray-runs",
) -> None:
    """A whole run in a few minutes with nothing but this machine: images, transfer, proof, export, prediction."""
    from tlray.runs.prepare import new_run_uri
    from tlray.workflows.demo import demo_config, run_demo

    config = demo_config(storage)
    run_uri = new_run_uri(config)
    print_run(run_uri)
    run_demo(config, run_uri, out)
    print_run(run_uri)


@app.command()
def run(config: ConfigArgument, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Train every trial of CONFIG in parallel, rank them beside the baseline and export the best."""
    loaded = load_checked(config, overrides)
    if dry_run:
        from tlray.planning.dry_run import dry_run_of_plan

        out.print(dry_run_of_plan(_planned(loaded)))
        return
    from tlray.runs.prepare import new_run_uri
    from tlray.workflows.run import run as run_all

    run_uri = new_run_uri(loaded)
    print_run(run_uri)
    run_all(loaded, run_uri, out)
    print_run(run_uri)


@app.command()
def resume(run_uri: RunArgument, dry_run: DryRun = False) -> None:
    """Go on with an interrupted run; what is finished is not done again."""
    from tlray import storage
    from tlray.runs.prepare import load_run

    run_uri = storage.absolute(run_uri)
    loaded = load_run(run_uri)  # before Ray is imported, let alone started
    if dry_run:
        from tlray.planning.dry_run import dry_run_of_resume

        out.print(dry_run_of_resume(loaded))
        return
    from tlray.workflows.run import resume as resume_run

    print_run(run_uri)
    resume_run(run_uri, out)
    print_run(run_uri)


@app.command()
def plan(config: ConfigArgument, overrides: Overrides = None, as_json: Json = False) -> None:
    """Check CONFIG, the images and the weights, and show every trial that a run would start. Trains nothing."""
    loaded = load_checked(config, overrides)
    from tlray.runs.plan import plan_tables

    planned = _planned(loaded)
    show(planned, plan_tables(planned), as_json)


@app.command()
def rank(config: ConfigArgument, overrides: Overrides = None, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Score the backbones of CONFIG on some training images: which are worth a sweep? Trains nothing."""
    loaded = load_checked(config, overrides)
    if dry_run:
        from tlray.planning.dry_run import dry_run_of_features
        from tlray.planning.planner import plan_ranking

        out.print(dry_run_of_features(plan_ranking(loaded)[0].plan))
        return
    from tlray.ranking.tables import ranking_table
    from tlray.runs.prepare import new_run_uri
    from tlray.workflows.run import rank as rank_all

    run_uri = new_run_uri(loaded)
    if as_json:
        show(rank_all(loaded, run_uri, PlainConsole(stderr=True)), None, as_json)
        return
    print_run(run_uri)
    out.print(ranking_table(rank_all(loaded, run_uri, out)))
    print_run(run_uri)


@app.command()
def features(config: ConfigArgument, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Compute what each backbone of CONFIG makes of every image, once, and write it as Parquet for other tools."""
    loaded = load_checked(config, overrides)
    if dry_run:
        from tlray.planning.dry_run import dry_run_of_features
        from tlray.planning.planner import plan_features

        out.print(dry_run_of_features(plan_features(loaded).plan))
        return
    from tlray.runs.prepare import new_run_uri
    from tlray.workflows.run import features as write_features

    run_uri = new_run_uri(loaded)
    print_run(run_uri)
    for uri in write_features(loaded, run_uri, out):
        say(uri)
    print_run(run_uri)


def _planned(config: "RunConfig") -> "Plan":
    """As it is on this machine; ConfigError for a budget that does not hold the run."""
    from tlray.planning.planner import plan_run
    from tlray.planning.within_budget import within_budget
    from tlray.process.began import command_began

    return within_budget(plan_run(config), time.monotonic() - command_began()).plan
