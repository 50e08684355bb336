"""A timm-style recipe: RandAugment, mixup, label smoothing, AdamW with a warm-up and a cosine, EMA of the weights.

    python -m benchmarks.programs.quality_timm job.json

12 epochs on train, all layers; the EMA after the last epoch predicts; val chooses the backbone.
"""

import json
import sys

import torch
from timm.data import Mixup, create_transform
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.quality_parts.backbones import Facts, classifier, evaluation_transform, load_body, read_job
from benchmarks.quality_parts.batches import NUM_WORKERS, Images, outputs, score
from benchmarks.quality_parts.weights import INPUT_SIZE

EPOCHS, WARMUP_EPOCHS = 12, 1
RATE, WEIGHT_DECAY = 1e-3, 0.05
EMA_DECAY = 0.99
FEW, BATCH, SMALL_BATCH = 128, 32, 8  # of fewer images than FEW, batches are small


def main(path: str) -> None:
    job = read_job(path)
    trained = [train(job, name) for name in job["backbones"]]
    best = max(trained, key=lambda one: one["score"])
    candidates = [{**one, "predictions": None} for one in trained]
    cell = {"chosen": best["backbone"], "predictions": best["predictions"], "candidates": candidates}
    print(json.dumps({"timm": cell}))


def train(job: dict, name: str) -> dict:
    torch.manual_seed(job["seed"])
    body, facts = load_body(name, job["weights"])
    images = Images(job["images"], ("train",), training_transform(facts))
    num_classes = max(images.labels) + 1
    model = classifier(body, facts, num_classes)
    averaged = fit(model, images, num_classes)
    val, test = (Images(job["images"], (split,), evaluation_transform(facts)) for split in ("val", "test"))
    predictions = outputs(averaged, test).argmax(1)
    return {
        "backbone": name,
        "score": score(outputs(averaged, val), val.labels),
        "test": float((predictions == test.labels).mean()),
        "predictions": predictions.tolist(),
    }


def fit(model: nn.Module, images: Images, num_classes: int) -> nn.Module:
    """Train `model` -> the average of its weights."""
    size = BATCH if len(images) >= FEW else SMALL_BATCH
    loader = DataLoader(images, size, shuffle=True, drop_last=True, num_workers=NUM_WORKERS, persistent_workers=True)
    optimizer = create_optimizer_v2(model, "adamw", lr=RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * len(loader)
    schedule = CosineLRScheduler(
        optimizer, t_initial=steps, lr_min=RATE / 100, warmup_t=WARMUP_EPOCHS * len(loader), warmup_lr_init=RATE / 100
    )
    mixup = Mixup(mixup_alpha=0.2, label_smoothing=0.1, num_classes=num_classes)
    criterion, averaged, step = SoftTargetCrossEntropy(), ModelEmaV3(model, EMA_DECAY, use_warmup=True), 0
    for _ in range(EPOCHS):
        model.train()
        for batch, labels in loader:
            schedule.step(step)
            mixed, targets = mixup(batch, labels)
            optimizer.zero_grad()
            criterion(model(mixed), targets).backward()
            optimizer.step()
            step += 1
            averaged.update(model, step=step)
    return averaged.module


def training_transform(facts: Facts) -> nn.Module:
    return create_transform(
        INPUT_SIZE,
        is_training=True,
        scale=(0.35, 1.0),
        auto_augment="rand-m7-mstd0.5-inc1",
        interpolation="bilinear",
        mean=facts.mean,
        std=facts.std,
    )


if __name__ == "__main__":
    main(sys.argv[1])
