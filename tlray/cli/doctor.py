"""The command that looks before money is spent."""

from typing import Annotated, Any

import typer

from tlray.cli.common import Json, Overrides, app, load_config, show


@app.command()
def doctor(
    config: Annotated[
        str | None, typer.Argument(help="YAML file whose storage, images and weights to check too", metavar="CONFIG")
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Say what is wrong with this installation, the cluster, the storage and the weights, before money is spent."""
    from tlray.planning.doctor import checks_table, run_checks

    loaded = load_config(config, overrides) if config else None

    def cluster() -> Any:
        # A broken Ray must be a finding of the doctor, not the end of it.
        from tlray.distributed.cluster import cluster_summary

        return cluster_summary(loaded.cluster if loaded is not None else None)

    def resources(run_config: Any, summary: Any) -> Any:
        from tlray.distributed.resources import trial_resources

        return trial_resources(run_config, summary)

    checks = run_checks(loaded, cluster, resources)
    show(checks, checks_table(checks), as_json)
    if any(check.status == "problem" for check in checks):
        raise typer.Exit(1)
