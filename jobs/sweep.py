"""A whole run as a Ray job; the first and the last line of its log name the run folder.

`ray job stop` is a clean end: finished trials stay, the others go on from their last checkpoint with --resume.

ray job submit --working-dir . --entrypoint-num-cpus 0 -- python jobs/sweep.py --config configs/demo.yaml
ray job submit --working-dir . --entrypoint-num-cpus 0 -- python jobs/sweep.py --resume s3://bucket/runs/birds/RUN
"""

from tlray.cli import main
from tlray.cli.job import JobParser
from tlray.process.ending import own_process


def sweep() -> None:
    parser = JobParser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="YAML file, in the working directory or s3://")
    what.add_argument("--resume", help="run folder of an interrupted run")
    parser.add_argument("--dry-run", action="store_true", help="start nothing, show what this would do")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of the configuration")
    options = parser.parse_args()
    if options.resume and options.overrides:
        parser.error(f"{options.overrides[0]}: a run keeps its configuration; give overrides with --config")
    flags = ["--dry-run"] if options.dry_run else []
    command = ["resume", options.resume] if options.resume else ["run", options.config, *options.overrides]
    main([*command, *flags])


if __name__ == "__main__":
    own_process(sweep)
