"""What the scripts in jobs/ share: their parser, and the whole of those that are one command on one configuration."""

import argparse
from typing import NoReturn

from tlray.cli import main
from tlray.process.ending import own_process, say


class JobParser(argparse.ArgumentParser):
    """A script's command line, whose mistakes are one line as those of `tlray`."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        say(f"error: {message}; see `{self.prog} --help`")
        raise SystemExit(2)


def config_job(command: str, description: str | None) -> None:
    """`tlray COMMAND` with --config, --dry-run and overrides from the script's own command line, and the end of it."""
    own_process(lambda: _run(command, description))


def _run(command: str, description: str | None) -> None:
    parser = JobParser(description)
    parser.add_argument("--config", required=True, help="YAML file, in the working directory or s3://")
    parser.add_argument("--dry-run", action="store_true", help="start nothing, show what this would do")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of the configuration")
    options = parser.parse_args()
    flags = ["--dry-run"] if options.dry_run else []
    main([command, options.config, *options.overrides, *flags])
