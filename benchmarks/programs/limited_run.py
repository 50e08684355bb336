"""A whole run on a Ray that believes it has so many CPUs: as many trials at once, however many cores there are.

python -m benchmarks.programs.limited_run config.yaml 4
"""

import logging
import os
import sys

import ray
from rich.console import Console

from tlray.cli.common import load_config
from tlray.runs.prepare import new_run_uri
from tlray.workflows.run import run

if __name__ == "__main__":
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=int(sys.argv[2]),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    config = load_config(sys.argv[1])
    run(config, new_run_uri(config), Console())
