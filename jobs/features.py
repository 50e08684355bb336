"""Every image's feature vectors as Parquet files, as a Ray job; the first and last line of its log name the run folder.

ray job submit --working-dir . --entrypoint-num-cpus 0 -- python jobs/features.py --config configs/demo.yaml
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
    main(["features", options.config, *options.overrides, *flags])
