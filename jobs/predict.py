"""Millions of images through an export, as a Ray job that may be killed and submitted again; its log ends with where.

ray job submit --working-dir . --entrypoint-num-cpus 0 -- python jobs/predict.py \\
    --model s3://bucket/runs/birds/champion.json --images s3://bucket/new --output s3://bucket/predictions/new
"""

from tlray.cli import main
from tlray.cli.job import JobParser
from tlray.process.ending import own_process


def predict() -> None:
    parser = JobParser(__doc__)
    parser.add_argument("--model", required=True, help="export bundle, run folder or champion.json, local or s3://")
    parser.add_argument("--images", required=True, nargs="+", help="prefixes, folders, patterns or files")
    parser.add_argument("--output", required=True, help="folder or s3:// location; it binds to this model and images")
    parser.add_argument("--json", action="store_true", help="end with a summary as one JSON object")
    parser.add_argument("--dry-run", action="store_true", help="start nothing, show what this would do")
    options = parser.parse_args()
    arguments = ["predict", options.model, *options.images, "--output", options.output]
    flags = [flag for flag, given in (("--json", options.json), ("--dry-run", options.dry_run)) if given]
    main([*arguments, *flags])


if __name__ == "__main__":
    own_process(predict)
