"""Does early stopping find what a sweep finds that stops nothing, and how much of its work does it do?

    python -m benchmarks.stopping [--folder FOLDER] [--data hymenoptera,dogcat,cifar10] [--seeds 0] [--epochs 10]
        [--backbones mobilenet_v2,mobilenetv1_100,squeezenet1_0,mobilenetv2_035]

Three sets of real images, some 200 to 320 of each to train on, four backbones with ImageNet weights at 112 pixels;
partial, gradual and full training with three rates each: 36 trials. Linear probes are not among them: they train as one
batched head and are never stopped. All trials are trained to their end once, and tested after every epoch. From these
curves sweeps on two workers are replayed, each with the trials in 200 random orders: one that stops nothing (`fifo`),
one with tlray's own rule at its defaults, and ASHA as it was before (`rungs_for_all`: grace 1, trials of all kinds
together).

FOLDER keeps the curves, by default only while this runs; what is there is not trained again, so that the benchmark runs
in parts. The last line is one JSON object: winner_loss_points (test accuracy of FIFO's winner minus that of the
default's, in points, mean), work_fraction (of FIFO's seconds), the same with the prefix rungs_for_all_, per_backbone_
(trials compete within their backbone, too) and one row for each set in `all`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.choice import config
from benchmarks.machine import describe, shared_folder
from benchmarks.quality_parts.sets import SETS, make_set
from benchmarks.quality_parts.weights import BACKBONES
from benchmarks.stopping_replay import Curve, Outcome, Rule, fair, never, replay, rungs_for_all
from tlray.config import SweepConfig, TrialConfig
from tlray.runs.budget.worth import backbone_key
from tlray.runs.stopping import kind_of
from tlray.training.epoch import EpochMetrics

REPLAYS = 200
RATES = [0.0001, 0.0003, 0.001]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where the curves are kept")
    parser.add_argument("--data", default="hymenoptera,dogcat,cifar10")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--backbones", default=",".join(BACKBONES))
    options = parser.parse_args()
    print(describe())
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as name:
        folder = Path(options.folder or name).absolute()
        rows = []
        for data in options.data.split(","):
            for seed in map(int, options.seeds.split(",")):
                curves = trained(folder, data, seed, options.epochs, options.backbones.split(","))
                rows.append({"data": data, "seed": seed, **compare(curves)})
    for row in rows:
        print(json.dumps(row))
    keys = [key for key in rows[0] if key.endswith(("_points", "_fraction"))]
    print(json.dumps({key: round(statistics.mean(row[key] for row in rows), 3) for key in keys} | {"all": rows}))


def compare(curves: Sequence[Curve]) -> dict[str, Any]:
    """One row of the table."""
    default = SweepConfig()
    everything = replay(curves, never, seed=None)
    best = points(everything)
    row: dict[str, Any] = {"trials": len(curves), "fifo_test_points": round(best, 2)}
    rules: dict[str, Rule] = {
        "": fair(default),
        "per_backbone_": fair(default, kind=lambda trial: kind_of(trial) + backbone_key(trial.backbone)),
        "rungs_for_all_": rungs_for_all(1, default.reduction_factor),
    }
    for name, rule in rules.items():
        outcomes = [replay(curves, rule, seed=seed) for seed in range(REPLAYS)]
        work = statistics.mean(outcome.seconds for outcome in outcomes) / everything.seconds
        row[f"{name}winner_loss_points"] = round(best - statistics.mean(map(points, outcomes)), 3)
        row[f"{name}work_fraction"] = round(work, 3)
    return row


def points(outcome: Outcome) -> float:
    """Test accuracy of the winner."""
    assert outcome.choice.test_accuracy is not None
    return 100 * outcome.choice.test_accuracy


def trained(folder: Path, data: str, seed: int, epochs: int, backbones: Sequence[str]) -> list[Curve]:
    """The curves of all trials, trained now where FOLDER does not have them."""
    images = make_set(folder, SETS[data], shared_folder(), seed)
    place = folder / f"curves-{data}-{seed}-{epochs}-{'+'.join(backbones)}"
    place.mkdir(exist_ok=True)
    settings = config(images, seed)
    named = dict(zip(BACKBONES, settings["backbones"], strict=True))
    settings |= {
        "name": "curves",
        "backbones": [named[name] for name in backbones],
        "strategies": [{"strategy": "partial", "trainable_blocks": 3}, "gradual", "full"],
        "search_space": {"lr": {"grid": RATES}},
        "training": {"epochs": epochs, "batch_size": 16},
        "activations": {"materialise": "never"},
    }
    (place / "config.yaml").write_text(yaml.safe_dump(settings))
    curves = place / "curves.jsonl"
    command = [sys.executable, "-m", "benchmarks.programs.curves", str(place / "config.yaml"), str(curves)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return read_curves(curves)


def read_curves(path: Path) -> list[Curve]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        Curve(
            trial=TrialConfig.model_validate(row["trial"]),
            epochs=tuple(EpochMetrics(**epoch) for epoch in row["epochs"]),
            test_accuracies=tuple(row["test_accuracies"]),
            num_val=row["num_val"],
        )
        for row in rows
    ]


if __name__ == "__main__":
    main()
