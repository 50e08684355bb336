"""What the scripts in jobs/ share that are one command on one configuration."""

import argparse

from tlray.cli import main
from tlray.ending import own_process


def config_job(command: str, description: str | None) -> None:
    """`tlray COMMAND` with --config, --dry-run and overrides from the script's own command line, and the end of it."""
    own_process(lambda: _run(command, description))


def _run(command: str, description: str | None) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file, in the working directory or s3://")
    parser.add_argument("--dry-run", action="store_true", help="start nothing, show what this would do")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of the configuration")
    options = parser.parse_args()
    flags = ["--dry-run"] if options.dry_run else []
    main([command, options.config, *options.overrides, *flags])
