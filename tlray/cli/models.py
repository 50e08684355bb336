"""Commands about models: the catalogue's, and exported ones at work."""

import json
import sys
from typing import Annotated

import typer

from tlray.cli.common import DryRun, Json, app, check_count, out, show
from tlray.errors import InputError, TlrayError
from tlray.process.console import PlainConsole, say
from tlray.process.printable import in_one_line

Flip = Annotated[bool, typer.Option("--flip", help="average over each image and its mirror image, for twice the time")]


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
    limit: Annotated[int | None, typer.Option(help="show the first N", metavar="N")] = None,
    as_json: Json = False,
    plot: Annotated[str | None, typer.Option(help="draw accuracy over size: .png, .svg, .html", metavar="FILE")] = None,
) -> None:
    """List the catalogue's backbones with their published facts: filter, sort, draw."""
    check_count("--limit", limit)
    from tlray.catalogue.query import find

    names = ("pattern", "max_params", "max_size", "max_gflops", "min_top1", "family", "input", "licence", "trained_on")
    given = locals()
    filters = {name: given[name] for name in (*names, "library", "pretrained")}
    found = find(filters, sort=sort, reverse=reverse, limit=limit)
    if plot is not None:
        from tlray.report.models_plot import write_models_plot

        write_models_plot(found, plot)
        say(f"plot: {plot}", file=sys.stderr)
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
    flip: Flip = False,
    dry_run: DryRun = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="print JSON: an object a line; with --output a summary")
    ] = False,
) -> None:
    """Print the class and its probability for each image, or write millions of them to --output."""
    if weights != "pretrained" and output is not None:
        raise InputError(f"--weights {weights}: with --output the model is an export, which brings its own")
    if flip and output is not None:
        raise InputError("--flip: with --output the export decides; export.tta=flip makes one that averages")
    if dry_run and output is None:
        raise InputError("--dry-run says what --output would come to hold: give both, or neither for a few images")
    from tlray.planning.first_look import look_at_location, look_at_model

    look_at_model(export)
    for given in images:
        look_at_location(given)
    if output is not None:
        if dry_run:
            _look_ahead(export, images, output, as_json)
        else:
            _predict_many(export, images, output, as_json)
        return
    from tlray.inference.predict import predict as predict_images

    num_bad = 0
    for prediction in predict_images(export, images, weights=weights, tta="flip" if flip else "none"):
        num_bad += prediction.error is not None
        if as_json:
            print(json.dumps(prediction.to_dict()))
        elif prediction.error is not None:
            say(f"{_field(prediction.uri)}\tunreadable: {_field(prediction.error)}")
        else:
            say(f"{_field(prediction.uri)}\t{_field(prediction.label)}\t{prediction.confidence:.4f}")
    if num_bad:
        raise TlrayError(f"{num_bad} images could not be read")


def _field(text: str | None) -> str:
    """One column of a line: a name with a tab or the end of a line in it does not make another one."""
    return in_one_line(text or "")


def _look_ahead(export: str, images: list[str], output: str, as_json: bool) -> None:
    from tlray.inference.outlook import look_ahead
    from tlray.planning.dry_run import NOTHING_STARTED

    outlook = look_ahead(export, images, output)
    if as_json:
        print(json.dumps(vars(outlook)))
        return
    print(
        f"{outlook.images_to_compute} of {outlook.num_images} images would be predicted, in {outlook.parts_to_compute} "
        f"of {outlook.num_parts} parts, and {outlook.parts_to_remove} outdated parts removed"
    )
    say(f"model: {outlook.model}, version {outlook.model_version[:12]}", NOTHING_STARTED)


def _predict_many(export: str, images: list[str], output: str, as_json: bool) -> None:
    from tlray.workflows.run import predict_many

    summary = predict_many(export, images, output, PlainConsole(stderr=True) if as_json else out)
    if as_json:
        print(json.dumps(vars(summary)))
        return
    print(
        f"{summary.num_images} images, {summary.num_bad} unreadable, in {summary.num_parts} parts, of which "
        f"{summary.parts_computed} computed now ({summary.images_per_second:.0f} images/s) and "
        f"{summary.parts_removed} outdated ones removed"
    )
    say(f"predictions: {summary.output}")


@app.command()
def evaluate(
    export: Annotated[str, typer.Argument(help="export bundle or run folder")],
    data: Annotated[str, typer.Argument(help="folder with one sub-folder of images per class, local or s3://")],
    flip: Flip = False,
    as_json: Json = False,
) -> None:
    """Score an exported model on labelled images."""
    from tlray.planning.first_look import look_at_location, look_at_model

    look_at_model(export)
    look_at_location(data)
    from tlray.inference.predict import evaluate as evaluate_export
    from tlray.report.tables import evaluation_table

    evaluation = evaluate_export(export, data, tta="flip" if flip else "none")
    show(evaluation, evaluation_table(evaluation), as_json)
