"""The recipe of Ray's documentation: a function trainable that runs a TorchTrainer for each trial, two at a time.

    python -m benchmarks.programs.recipe work.json

torchvision's ImageFolder and a DataLoader with its defaults, the evaluation transform, the model from torchvision with
its head replaced, `requires_grad=False` on what is frozen, AdamW on the rest. Frozen modules stay in evaluation mode,
without which the recipe would be less accurate. No checkpoints: they would only cost it time.
"""

import json
import sys
import tempfile

import ray
from ray import tune

from benchmarks.programs.recipe_trial import trainable
from benchmarks.sweep_work import read_work


def main(path: str) -> None:
    work = read_work(path)
    common = {name: getattr(work, name) for name in ("train", "val", "epochs", "batch_size", "weight_decay", "seed")}
    trials = [
        {
            **common,
            "backbone": one.name,
            **{name: getattr(one, name) for name in ("weights", "mean", "std")},
            "strategy": strategy,
            "unfrozen": stage,
            "lr": lr,
        }
        for one in work.backbones
        for strategy, stage, rates in (
            ("linear_probe", [], work.probe_rates),
            ("partial", list(one.last_stage), work.partial_rates),
        )
        for lr in rates
    ]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as storage:
        results = tune.Tuner(
            tune.with_resources(trainable, {"memory": 300 * 2**20}),
            param_space={"trial": tune.grid_search(trials), "storage": storage},
            tune_config=tune.TuneConfig(max_concurrent_trials=2),
            run_config=tune.RunConfig(name="recipe", storage_path=storage, verbose=0),
        ).fit()
        rows = [
            {
                **{name: result.config["trial"][name] for name in ("backbone", "strategy", "lr")},
                "accuracy": float(result.metrics_dataframe["val_accuracy"].max()),
            }
            for result in results
        ]
    ray.shutdown()
    print(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1])
