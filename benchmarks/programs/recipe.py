"""The recipe of Ray's documentation: a function trainable that runs a TorchTrainer for each trial, two at a time.

    python -m benchmarks.programs.recipe work.json

torchvision's ImageFolder and a DataLoader with its defaults, the evaluation transform, the model from torchvision with
its head replaced, `requires_grad=False` on what is frozen, AdamW on the rest. Frozen modules stay in evaluation mode,
without which the recipe would be less accurate. No checkpoints: they would only cost it time.
"""

import json
import sys
import tempfile
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from benchmarks.programs.torchvision_parts import TRANSFORM, make_model
from benchmarks.sweep_work import read_work


def train_loop(config: dict[str, Any]) -> None:
    torch.manual_seed(config["seed"])
    train_set, val_set = ImageFolder(config["train"], TRANSFORM), ImageFolder(config["val"], TRANSFORM)
    train_loader = ray.train.torch.prepare_data_loader(DataLoader(train_set, config["batch_size"], shuffle=True))
    val_loader = ray.train.torch.prepare_data_loader(DataLoader(val_set, config["batch_size"]))
    model, head = make_model(config["backbone"], config["weights"], len(train_set.classes), config["seed"])
    model.requires_grad_(False)
    trained = [head, *(model.get_submodule(name) for name in config["unfrozen"])]
    for module in trained:
        module.requires_grad_(True)
    model = ray.train.torch.prepare_model(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config["lr"], weight_decay=config["weight_decay"])
    criterion = nn.CrossEntropyLoss()
    for _ in range(config["epochs"]):
        model.eval()
        for module in trained:
            module.train()
        for images, labels in train_loader:
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
        model.eval()
        hits = 0
        with torch.no_grad():
            for images, labels in val_loader:
                hits += int((model(images).argmax(1) == labels).sum())
        ray.train.report({"val_accuracy": hits / len(val_set)})


def trainable(config: dict[str, Any]) -> None:
    TorchTrainer(
        train_loop,
        train_loop_config=config["trial"],
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            name=tune.get_context().get_trial_id(),
            storage_path=config["storage"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def main(path: str) -> None:
    work = read_work(path)
    common = {name: getattr(work, name) for name in ("train", "val", "epochs", "batch_size", "weight_decay", "seed")}
    trials = [
        {**common, "backbone": one.name, "weights": one.weights, "strategy": strategy, "unfrozen": stage, "lr": lr}
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
