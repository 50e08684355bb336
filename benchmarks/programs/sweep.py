"""tlray: the library as `tlray run` uses it, until the last row is written.

    python -m benchmarks.programs.sweep work.json

Planned, run and recorded as always; without the baseline, the report and the exports, which the others do not have.
Validation and test are the same images here, so that the accuracies can be compared with the others'.
"""

import dataclasses
import io
import json
import sys
from typing import Any

from rich.console import Console

from benchmarks.sweep_work import Work, read_work
from tlray.config import RunConfig
from tlray.distributed.cluster import connect
from tlray.distributed.on_cluster import plan_on_cluster
from tlray.distributed.sweep import run_sweep
from tlray.runs.prepare import new_run_uri, prepare_run
from tlray.runs.trials import load_results
from tlray.workflows.progress import SweepProgress

FROZEN_FRACTION = 0.75  # of the blocks: all but the last stage, in both backbones


def make_config(work: Work) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "benchmark",
            "storage": work.storage,
            "seed": work.seed,
            "data": {"train": work.train, "val": work.val, "test": work.val},
            "backbones": [
                {"id": f"torchvision/{one.name}.IMAGENET1K_V1", "weights": one.weights} for one in work.backbones
            ],
            "strategies": strategies(work),
            "training": {
                "epochs": work.epochs,
                "batch_size": work.batch_size,
                "weight_decay": work.weight_decay,
                "schedule": "constant",
                "augmentation": "none",
            },
            "sweep": {"scheduler": "fifo", "max_concurrent_trials": 2},
        }
    )


def strategies(work: Work) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if work.probe_rates:
        found.append({"strategy": "linear_probe", "search_space": {"lr": {"grid": work.probe_rates}}})
    if work.partial_rates:
        space = {"lr": {"grid": work.partial_rates}}
        found.append({"strategy": "partial", "frozen_fraction": FROZEN_FRACTION, "search_space": space})
    return found


def main(path: str) -> None:
    work = read_work(path)
    connect()
    config = make_config(work)
    planned = plan_on_cluster(config)
    chosen = tuple(trial for trial in planned.trials if not trial.is_baseline)
    run = prepare_run(dataclasses.replace(planned, trials=chosen), new_run_uri(config))
    run = dataclasses.replace(run, trials=chosen)
    with SweepProgress(chosen, (), Console(file=io.StringIO())) as progress:
        run_sweep(run, progress)
    rows = [
        {
            "backbone": row.backbone.rpartition("/")[2].partition(".")[0],
            "strategy": row.strategy.partition("(")[0],
            "lr": row.params["lr"],
            "accuracy": row.val_accuracy,
            "error": row.error,
            "prefix_images_computed": row.prefix_images_computed,
        }
        for row in load_results(run.uri)
    ]
    assert len(rows) == len(chosen), rows
    assert not any(row["error"] for row in rows), rows
    print(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1])
