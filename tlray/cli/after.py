"""Commands on finished runs and on the champion that they lead to."""

import json
from typing import Annotated

import typer

from tlray.cli.common import (
    ConfigArgument,
    DryRun,
    Json,
    Overrides,
    RunArgument,
    app,
    check_count,
    load_located,
    out,
    show,
)
from tlray.errors import InputError
from tlray.process.console import say


@app.command()
def export(
    run_uri: RunArgument,
    top_k: Annotated[int, typer.Option(help="how many of the best trials")] = 1,
) -> None:
    """Export the best trials of a run as bundles that predict."""
    check_count("--top-k", top_k)
    from tlray.runs.lease import hold_run
    from tlray.runs.prepare import load_run

    loaded = load_run(run_uri)  # before torch is imported
    with hold_run(loaded.uri, "tlray export"):
        from tlray.runs.board import write_leaderboard
        from tlray.workflows.exports import export_best

        leaderboard = write_leaderboard(loaded.uri, seed=loaded.config.seed, warnings=loaded.manifest.warnings)
        bundles = export_best(loaded, leaderboard, top_k)
    for bundle in bundles:
        say(bundle)


@app.command()
def report(run_uri: RunArgument, as_json: Json = False) -> None:
    """Write the run's leaderboard and report.html as they stand now, and print where the report is."""
    from tlray.report import agreement_table, leaderboard_table, read_found, write_report
    from tlray.runs.board import write_leaderboard
    from tlray.runs.prepare import load_run

    loaded = load_run(run_uri)
    leaderboard = write_leaderboard(loaded.uri, seed=loaded.config.seed, warnings=loaded.manifest.warnings)
    report_uri = write_report(loaded.uri)
    show(leaderboard, leaderboard_table(leaderboard), as_json)
    if not as_json:
        found = read_found(loaded.uri, leaderboard)
        if found is not None:
            out.print(agreement_table(found))
        say(report_uri)


@app.command()
def retrain(config: ConfigArgument, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Sweep again where data or configuration have changed, and promote the winner only if it beats the champion.

    Exit code 3, with nothing spent: nothing has changed since it was last judged, or another retraining is at work.
    """
    loaded = load_located(config, overrides)
    from tlray.workflows.retrain.flow import look
    from tlray.workflows.retrain.flow import retrain as retrain_all

    if dry_run:
        from tlray.planning.dry_run import NOTHING_STARTED

        say(look(loaded), NOTHING_STARTED)
        return
    retrain_all(loaded, out)


@app.command()
def promote(
    target: Annotated[
        str, typer.Argument(help="run folder or export bundle; with --rollback or --history: CONFIG or its run folders")
    ],
    into: Annotated[
        str | None, typer.Option(help="whose champion a bundle of no run becomes", metavar="CONFIG")
    ] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="bring back the champion before this one")] = False,
    history: Annotated[bool, typer.Option("--history", help="show every champion there was; changes nothing")] = False,
    as_json: Json = False,
) -> None:
    """Choose the champion by hand, bring back the one before, or show what was in use when."""
    if rollback + history + (into is not None) > 1:
        raise InputError("give one of --rollback, --history and --into")
    if not (rollback or history):
        from tlray.planning.first_look import look_at_location

        look_at_location(target)
    from tlray.runs.champion import history as all_champions
    from tlray.runs.champion import rollback as bring_back
    from tlray.workflows.retrain.home import home_of

    if history:
        champions = all_champions(home_of(target))
    elif rollback:
        champions = (bring_back(home_of(target)),)
    else:
        home = home_of(into) if into is not None else None  # before torch is imported
        from tlray.workflows.retrain.by_hand import promote_by_hand

        champions = (promote_by_hand(target, home),)
    if as_json:
        print(json.dumps([champion.model_dump(mode="json") for champion in champions]))
    elif history:
        from tlray.workflows.retrain.history import history_table

        out.print(history_table(champions))
    else:
        say(f"champion {champions[-1].number}: {champions[-1].export}, {champions[-1].reason}")
