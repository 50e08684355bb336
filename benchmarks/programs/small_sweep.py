"""A sweep of one small backbone on a folder of images: two linear probes and a partial trial, on activations.

python -m benchmarks.programs.small_sweep IMAGES STORAGE
"""

import dataclasses
import io
import sys
from typing import Any

from rich.console import Console

from tlray.config import RunConfig
from tlray.distributed.cluster import connect
from tlray.distributed.on_cluster import plan_on_cluster
from tlray.distributed.sweep import run_sweep
from tlray.runs.prepare import new_run_uri, prepare_run
from tlray.runs.trials import load_results
from tlray.workflows.progress import SweepProgress

BACKBONE = {"id": "timm/test_resnet", "weights": "none", "input_size": 64}


def main(images: str, storage: str) -> None:
    run_trials(
        {
            "name": "memory",
            "storage": storage,
            "data": {"train": images},
            "backbones": [BACKBONE],
            "strategies": [
                {"strategy": "linear_probe", "search_space": {"lr": {"grid": [0.001, 0.01]}}},
                {"strategy": "partial", "trainable_blocks": 2},
            ],
            "training": {"epochs": 1, "augmentation": "none"},
            "activations": {"materialise": "always"},
            "sweep": {"scheduler": "fifo"},
        }
    )


def run_trials(fields: dict[str, Any]) -> None:
    """The whole of a run but its report and export, without the baseline; none of the trials may fail."""
    connect()
    config = RunConfig.model_validate(fields)
    planned = plan_on_cluster(config)
    trials = tuple(trial for trial in planned.trials if not trial.is_baseline)
    run = prepare_run(dataclasses.replace(planned, trials=trials), new_run_uri(config))
    run = dataclasses.replace(run, trials=trials)
    with SweepProgress(trials, (), Console(file=io.StringIO())) as progress:
        run_sweep(run, progress)
    assert [row.error for row in load_results(run.uri)] == [None] * len(trials), load_results(run.uri)


if __name__ == "__main__":
    main(*sys.argv[1:])
