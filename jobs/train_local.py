"""One trial of a configuration without Ray, beside the baseline, ranked and exported as a sweep does.

python jobs/train_local.py --config configs/smoke.yaml --trial 001-resnet18-full training.epochs=2
"""

from tlray.cli.job import JobParser
from tlray.process.ending import own_process


def train() -> None:
    parser = JobParser(__doc__)
    parser.add_argument("--config", required=True, help="YAML file, local or s3://")
    parser.add_argument("--trial", help="id of the trial, as `tlray plan` lists it; by default the first")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of the configuration")
    options = parser.parse_args()

    from tlray.cli.common import exit_on_error, load_checked, print_run

    with exit_on_error():
        config = load_checked(options.config, options.overrides)
        from tlray.process.console import PlainConsole
        from tlray.runs.prepare import new_run_uri
        from tlray.workflows.local import run_local  # torch

        run_uri = new_run_uri(config)
        print_run(run_uri)
        run_local(config, options.trial, run_uri, PlainConsole())
        print_run(run_uri)


if __name__ == "__main__":
    own_process(train)
