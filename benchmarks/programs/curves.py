"""Trains every trial of a configuration to its end, one after the other, and writes its curve, tested after each epoch.

    python -m benchmarks.programs.curves config.yaml curves.jsonl

A line for each trial: the TrialConfig, the metrics of every epoch, the accuracy on the test images after it, and the
number of validation images. What the file has already is not trained again. A trial knows nothing of its test images
before its end, so the evaluation of an epoch is wrapped here.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tlray.cli.common import load_config
from tlray.config import RunConfig, TrialConfig
from tlray.data.batch import Batch, Streams
from tlray.planning.planner import plan_run
from tlray.runs.prepare import prepare_run
from tlray.training import loop
from tlray.training.epoch import EpochMetrics
from tlray.training.metrics import Scores
from tlray.training.run_images import run_images
from tlray.training.trial import TrialImages, release_memory, run_trial
from tlray.training.worker import Worker, local_worker


def main(config: str, curves: str) -> None:
    torch.set_num_threads(1)
    loaded: RunConfig = load_config(config)
    done = Path(curves).read_text().splitlines() if Path(curves).exists() else []
    known = {json.loads(line)["trial"]["trial_id"] for line in done}
    with tempfile.TemporaryDirectory(prefix="tlray-curves-") as folder:
        run = prepare_run(plan_run(loaded.model_copy(update={"storage": folder})), f"{folder}/run")
        images = run_images(run.uri)
        for trial in run.trials:
            if trial.is_baseline or trial.trial_id in known:
                continue
            row = {"trial": trial.model_dump(mode="json"), "num_val": len(run.manifest.split("val"))}
            row |= tested_epochs(trial, run.uri, images)
            with Path(curves).open("a") as file:
                file.write(json.dumps(row) + "\n")
            release_memory()
            print(trial.trial_id, row["test_accuracies"], flush=True)


def tested_epochs(trial: TrialConfig, run_uri: str, images: TrialImages) -> dict[str, Any]:
    """Every epoch of a trial that is trained now, from its first to its last."""
    tested: list[float] = []
    seconds_of_tests: list[float] = []
    told: list[EpochMetrics] = []
    evaluate = loop.evaluate

    def evaluate_and_test(
        model: torch.nn.Module, streams: Streams, batches: Iterable[Batch], worker: Worker, precision: str = "float32"
    ) -> Scores:
        started = time.perf_counter()
        tested.append(evaluate(model, streams, streams.test(), worker, precision).accuracy)
        seconds_of_tests.append(time.perf_counter() - started)
        return evaluate(model, streams, batches, worker, precision)

    with mock.patch.object(loop, "evaluate", evaluate_and_test):
        run_trial(trial, run_uri, local_worker(), images, told.append)
    seconds = [metrics.seconds - test for metrics, test in zip(told, seconds_of_tests, strict=True)]
    epochs = [asdict(replace(metrics, seconds=each)) for metrics, each in zip(told, seconds, strict=True)]
    return {"epochs": epochs, "test_accuracies": tested}


if __name__ == "__main__":
    main(*sys.argv[1:])
