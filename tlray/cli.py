"""The command line: each command parses, calls one function of the library and prints where the result is.

Exit codes: 0 done, 1 the work failed, 2 the input is wrong, 3 nothing to do, 130 interrupted (and resumable).
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console

from tlray.errors import InputError, NothingToDo, TlrayError

app = typer.Typer(
    help="Find, prove and export the pre-trained backbone that works best on your images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console(width=None if sys.stdout.isatty() else 120)

ConfigArgument = Annotated[str, typer.Argument(help="YAML file, local or s3://", metavar="CONFIG")]
Overrides = Annotated[list[str] | None, typer.Argument(help="overrides such as training.epochs=5", metavar="KEY=VALUE")]
RunArgument = Annotated[str, typer.Argument(help="run folder, local or s3://", metavar="RUN")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="show what this would do and what it takes, start nothing")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document instead of a table")]


@app.command()
def demo(
    storage: Annotated[str, typer.Option(help="where the demo's images, weights and run are kept")] = "~/tlray-runs",
) -> None:
    """A whole run in a few minutes with nothing but this machine: images, transfer, proof, export, prediction."""
    from tlray.demo import demo_config, run_demo
    from tlray.prepare import new_run_uri

    config = demo_config(storage)
    run_uri = new_run_uri(config)
    print_run(run_uri)
    run_demo(config, run_uri, out)
    print_run(run_uri)


@app.command()
def run(config: ConfigArgument, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Train every trial of CONFIG in parallel, rank them beside the baseline and export the best."""
    from tlray.prepare import new_run_uri
    from tlray.run import run as run_all

    loaded = load_config(config, overrides)
    if dry_run:
        from tlray.dry_run import dry_run_of_plan
        from tlray.planning import plan_run

        out.print(dry_run_of_plan(plan_run(loaded).plan))
        return
    run_uri = new_run_uri(loaded)
    print_run(run_uri)
    run_all(loaded, run_uri, out)
    print_run(run_uri)


@app.command()
def resume(run_uri: RunArgument, dry_run: DryRun = False) -> None:
    """Go on with an interrupted run; what is finished is not done again."""
    from tlray import storage
    from tlray.run import resume as resume_run

    run_uri = storage.absolute(run_uri)
    if dry_run:
        from tlray.dry_run import dry_run_of_resume
        from tlray.prepare import load_run

        out.print(dry_run_of_resume(load_run(run_uri)))
        return
    print_run(run_uri)
    resume_run(run_uri, out)
    print_run(run_uri)


@app.command()
def plan(config: ConfigArgument, overrides: Overrides = None, as_json: Json = False) -> None:
    """Check CONFIG, the images and the weights, and show every trial that a run would start. Trains nothing."""
    from tlray.plan import plan_tables
    from tlray.planning import plan_run

    planned = plan_run(load_config(config, overrides)).plan
    _show(planned, plan_tables(planned), as_json)


@app.command()
def rank(config: ConfigArgument, overrides: Overrides = None, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Score the backbones of CONFIG on some training images: which are worth a sweep? Trains nothing."""
    from tlray.prepare import new_run_uri
    from tlray.ranking.tables import ranking_table
    from tlray.run import rank as rank_all

    loaded = load_config(config, overrides)
    if dry_run:
        from tlray.dry_run import dry_run_of_features
        from tlray.planning import plan_ranking

        out.print(dry_run_of_features(plan_ranking(loaded)[0].plan))
        return
    run_uri = new_run_uri(loaded)
    if as_json:
        _show(rank_all(loaded, run_uri, Console(stderr=True)), None, as_json)
        return
    print_run(run_uri)
    out.print(ranking_table(rank_all(loaded, run_uri, out)))
    print_run(run_uri)


@app.command()
def features(config: ConfigArgument, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Compute what each backbone of CONFIG makes of every image, once, and write it as Parquet for other tools."""
    from tlray.prepare import new_run_uri
    from tlray.run import features as write_features

    loaded = load_config(config, overrides)
    if dry_run:
        from tlray.dry_run import dry_run_of_features
        from tlray.planning import plan_features

        out.print(dry_run_of_features(plan_features(loaded).plan))
        return
    run_uri = new_run_uri(loaded)
    print_run(run_uri)
    for uri in write_features(loaded, run_uri, out):
        print(uri)
    print_run(run_uri)


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help="part of an id, or a pattern such as 'timm/*vit*'")] = "",
    max_params: Annotated[str | None, typer.Option(help="parameters, such as 10M", metavar="N")] = None,
    max_size: Annotated[str | None, typer.Option(help="download, such as 30MB", metavar="SIZE")] = None,
    max_gflops: Annotated[str | None, typer.Option(help="multiply-adds of one image, 10^9", metavar="N")] = None,
    min_top1: Annotated[float | None, typer.Option(help="ImageNet-1k accuracy, percent", metavar="PERCENT")] = None,
    family: Annotated[str | None, typer.Option(help="such as resnet, or 'regnet*'", metavar="NAME")] = None,
    input: Annotated[int | None, typer.Option(help="input size, pixels", metavar="PIXELS")] = None,
    licence: Annotated[str | None, typer.Option(help="such as apache-2.0", metavar="NAME")] = None,
    trained_on: Annotated[str | None, typer.Option(help="such as in1k or in21k", metavar="NAME")] = None,
    library: Annotated[str | None, typer.Option(help="such as timm", metavar="NAME")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="only what has weights to download")] = False,
    sort: Annotated[str | None, typer.Option(help="top1, top5, params, gflops, size, input, id", metavar="BY")] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="the other way round")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="show the first N", metavar="N")] = None,
    as_json: Json = False,
    plot: Annotated[str | None, typer.Option(help="draw accuracy over size: .png, .svg, .html", metavar="FILE")] = None,
) -> None:
    """List the catalogue's backbones with their published facts: filter, sort, draw."""
    from tlray.catalogue.query import find

    names = ("pattern", "max_params", "max_size", "max_gflops", "min_top1", "family", "input", "licence", "trained_on")
    given = locals()
    filters = {name: given[name] for name in (*names, "library", "pretrained")}
    found = find(filters, sort=sort, reverse=reverse, limit=limit)
    if plot is not None:
        from tlray.report.models_plot import write_models_plot

        write_models_plot(found, plot)
        print(f"plot: {plot}", file=sys.stderr)
    if as_json:
        print(json.dumps([facts.to_dict() for facts in found]))
        return
    from tlray.report import models_table

    out.print(models_table(found, out.width))


@app.command()
def predict(
    export: Annotated[
        str, typer.Argument(help="export bundle, run folder, champion.json, or a backbone id for its own labels")
    ],
    images: Annotated[list[str], typer.Argument(help="files, patterns, folders or s3:// locations")],
    weights: Annotated[str, typer.Option(help="for a backbone id: pretrained, or a weights file")] = "pretrained",
    output: Annotated[
        str | None, typer.Option(help="for many images: write Parquet files here, on the cluster", metavar="FOLDER")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print JSON: an object a line; with --output a summary")
    ] = False,
) -> None:
    """Print the class and its probability for each image, or write millions of them to --output."""
    if output is not None:
        _predict_many(export, images, weights, output, as_json)
        return
    from tlray.predict import predict as predict_images

    num_bad = 0
    for prediction in predict_images(export, images, weights=weights):
        num_bad += prediction.error is not None
        if as_json:
            print(json.dumps(prediction.to_dict()))
        elif prediction.error is not None:
            out.print(f"{prediction.uri}\tunreadable: {prediction.error}", markup=False, highlight=False)
        else:
            out.print(
                f"{prediction.uri}\t{prediction.label}\t{prediction.confidence:.4f}", markup=False, highlight=False
            )
    if num_bad:
        raise TlrayError(f"{num_bad} images could not be read")


def _predict_many(export: str, images: list[str], weights: str, output: str, as_json: bool) -> None:
    from tlray.run import predict_many

    if weights != "pretrained":
        raise InputError(f"--weights {weights}: with --output the model is an export, which brings its own")
    summary = predict_many(export, images, output, Console(stderr=True) if as_json else out)
    if as_json:
        print(json.dumps(vars(summary)))
        return
    print(
        f"{summary.num_images} images, {summary.num_bad} unreadable, in {summary.num_parts} parts, of which "
        f"{summary.parts_computed} computed now ({summary.images_per_second:.0f} images/s) and "
        f"{summary.parts_removed} outdated ones removed"
    )
    print(f"predictions: {summary.output}")


@app.command()
def evaluate(
    export: Annotated[str, typer.Argument(help="export bundle or run folder")],
    data: Annotated[str, typer.Argument(help="folder with one sub-folder of images per class, local or s3://")],
    as_json: Json = False,
) -> None:
    """Score an exported model on labelled images."""
    from tlray.predict import evaluate as evaluate_export
    from tlray.report.tables import evaluation_table

    evaluation = evaluate_export(export, data)
    _show(evaluation, evaluation_table(evaluation), as_json)


@app.command()
def export(
    run_uri: RunArgument,
    top_k: Annotated[int, typer.Option(min=1, help="how many of the best trials")] = 1,
) -> None:
    """Export the best trials of a run as bundles that predict."""
    from tlray.conclude import export_best
    from tlray.prepare import load_run
    from tlray.results import load_leaderboard

    loaded = load_run(run_uri)
    for bundle in export_best(loaded, load_leaderboard(loaded.uri), top_k):
        print(bundle)


@app.command()
def report(run_uri: RunArgument, as_json: Json = False) -> None:
    """Write the run's leaderboard and report.html as they stand now, and print where the report is."""
    from tlray.prepare import load_run
    from tlray.report import agreement_table, leaderboard_table, read_found, write_report
    from tlray.results import write_leaderboard

    loaded = load_run(run_uri)
    leaderboard = write_leaderboard(loaded.uri, seed=loaded.config.seed)
    report_uri = write_report(loaded.uri)
    _show(leaderboard, leaderboard_table(leaderboard), as_json)
    if not as_json:
        found = read_found(loaded.uri, leaderboard)
        if found is not None:
            out.print(agreement_table(found))
        print(report_uri)


@app.command()
def retrain(config: ConfigArgument, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Sweep again where data or configuration have changed, and promote the winner only if it beats the champion.

    Exit code 3, with nothing spent: nothing has changed since it was last judged, or another retraining is at work.
    """
    from tlray.retrain.flow import look
    from tlray.retrain.flow import retrain as retrain_all

    loaded = load_config(config, overrides)
    if dry_run:
        from tlray.dry_run import NOTHING_STARTED

        print(look(loaded), NOTHING_STARTED, sep="\n")
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
    from tlray.champion import history as all_champions
    from tlray.champion import rollback as bring_back
    from tlray.errors import InputError
    from tlray.retrain.by_hand import DEFAULT_STORAGE, home_of, promote_by_hand
    from tlray.retrain.history import history_table

    if rollback + history + (into is not None) > 1:
        raise InputError("give one of --rollback, --history and --into")
    if history:
        champions = all_champions(home_of(target, DEFAULT_STORAGE))
    elif rollback:
        champions = (bring_back(home_of(target, DEFAULT_STORAGE)),)
    else:
        champions = (promote_by_hand(target, into),)
    if as_json:
        print(json.dumps([champion.model_dump(mode="json") for champion in champions]))
    elif history:
        out.print(history_table(champions))
    else:
        print(f"champion {champions[-1].number}: {champions[-1].export}, {champions[-1].reason}")


@app.command()
def doctor(
    config: Annotated[
        str | None, typer.Argument(help="YAML file whose storage, images and weights to check too", metavar="CONFIG")
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Say what is wrong with this installation, the cluster, the storage and the weights, before money is spent."""
    from tlray.doctor import checks_table, run_checks

    loaded = load_config(config, overrides) if config else None

    def cluster() -> Any:
        # A broken Ray must be a finding of the doctor, not the end of it.
        from tlray.distributed.cluster import cluster_summary

        return cluster_summary(loaded.cluster if loaded is not None else None)

    def resources(run_config: Any, summary: Any) -> Any:
        from tlray.distributed.resources import trial_resources

        return trial_resources(run_config, summary)

    checks = run_checks(loaded, cluster, resources)
    _show(checks, checks_table(checks), as_json)
    if any(check.status == "problem" for check in checks):
        raise typer.Exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs the app; its exit code is the command's."""
    with exit_on_error():
        app(arguments)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn an expected error into one line on stderr and its exit code."""
    try:
        yield
    except NothingToDo as reason:
        print(reason)
        sys.exit(reason.exit_code)
    except TlrayError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


def load_config(location: str, overrides: list[str] | None = None) -> Any:
    """The configuration at a local path or URI, with overrides; shared with jobs/."""
    from tlray import storage
    from tlray.config_file import parse_config

    return parse_config(storage.read_text(location), overrides or (), source=location)


def print_run(run_uri: str) -> None:
    """The first and the last line of everything that makes a run."""
    print(f"run folder: {run_uri}", flush=True)


def _show(content: Any, table: Any, as_json: bool) -> None:
    """Print a table for people or one JSON document for programs."""
    if as_json:
        plain = content.model_dump(mode="json") if isinstance(content, BaseModel) else [vars(item) for item in content]
        print(json.dumps(plain))
    else:
        out.print(table)


if __name__ == "__main__":
    main()
