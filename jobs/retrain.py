"""A retraining as a Ray job: nothing where nothing has changed (exit code 3), else a sweep and a judged challenger.

ray job submit --working-dir . --entrypoint-num-cpus 0 -- python jobs/retrain.py --config configs/images.yaml
"""

import argparse

from tlray.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file, in the working directory or s3://")
    parser.add_argument("--dry-run", action="store_true", help="start nothing, show what this would do")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of the configuration")
    options = parser.parse_args()
    flags = ["--dry-run"] if options.dry_run else []
    main(["retrain", options.config, *options.overrides, *flags])
