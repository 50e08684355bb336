"""A trial of the recipe: in a module of its own, so that Ray's workers import it instead of unpickling it."""

from typing import Any

import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from benchmarks.programs.torchvision_parts import make_model, make_transform


def train_loop(config: dict[str, Any]) -> None:
    torch.manual_seed(config["seed"])
    transform = make_transform(config["mean"], config["std"])
    train_set, val_set = ImageFolder(config["train"], transform), ImageFolder(config["val"], transform)
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
