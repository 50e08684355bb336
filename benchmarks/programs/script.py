"""A hand-written script without Ray: images and features read once, then a head for each learning rate on them.

    python -m benchmarks.programs.script work.json

What a good engineer writes in an afternoon, with torch's defaults (all cores). It measures its own parts too: `floor`
is the CPU time of one decode of each image, one forward of it for each backbone and all steps of the heads, without
what it takes to start; `training` is that of the heads alone, all that there is to do again on features it had kept.
"""

import json
import sys
import time
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.programs.torchvision_parts import CROP, make_model
from benchmarks.sweep_work import BackboneWork, Work, read_work

Labelled = tuple[torch.Tensor, torch.Tensor]  # images (N, 3, 224, 224) uint8 or features (N, D) float32; labels (N,)


def load(folder: str, batch_size: int) -> Labelled:
    """All images of a folder, cropped, and their labels: both backbones see the same pixels."""
    dataset = ImageFolder(folder, transforms.Compose([*CROP, transforms.PILToTensor()]))
    parts = list(DataLoader(dataset, batch_size))
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


@torch.inference_mode()
def extract(model: nn.Module, images: torch.Tensor, one: BackboneWork, batch_size: int) -> torch.Tensor:
    """images (N, 3, 224, 224) uint8 -> features (N, D)."""
    model.eval()
    normalise = transforms.Normalize(one.mean, one.std)
    return torch.cat([model(normalise(batch.float() / 255)) for batch in images.split(batch_size)])


def train_head(head: nn.Module, dropout: float, train: Labelled, val: Labelled, lr: float, work: Work) -> float:
    """The best accuracy of all epochs."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=work.weight_decay)
    criterion = nn.CrossEntropyLoss()
    (features, labels), (val_features, val_labels) = train, val
    best = 0.0
    for _ in range(work.epochs):
        for rows in torch.randperm(len(labels)).split(work.batch_size):
            optimizer.zero_grad()
            inputs = nn.functional.dropout(features[rows], dropout)
            criterion(head(inputs), labels[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            hits = (head(val_features).argmax(1) == val_labels).sum()
        best = max(best, float(hits) / len(val_labels))
    return best


def main(path: str) -> None:
    work = read_work(path)
    rows: list[dict[str, Any]] = []
    training = 0.0
    started = time.process_time()
    images = {folder: load(folder, work.batch_size) for folder in (work.train, work.val)}
    floor = time.process_time() - started
    for one in work.backbones:
        model, head = make_model(one.name, one.weights, 2, work.seed)
        dropout = 0.2 if one.name == "mobilenet_v2" else 0.0
        if one.name == "resnet18":
            model.fc = nn.Identity()
        else:
            model.classifier = nn.Identity()
        started = time.process_time()
        train, val = (
            (extract(model, pixels, one, work.batch_size).clone(), labels) for pixels, labels in images.values()
        )
        extracted = time.process_time()
        initial = {key: value.clone() for key, value in head.state_dict().items()}
        for lr in work.probe_rates:
            head.load_state_dict(initial)
            torch.manual_seed(work.seed)
            accuracy = train_head(head, dropout, train, val, lr, work)
            rows.append({"backbone": one.name, "strategy": "linear_probe", "lr": lr, "accuracy": accuracy})
        ended = time.process_time()
        floor += ended - started
        training += ended - extracted
    print(json.dumps({"rows": rows, "floor": floor, "training": training}))


if __name__ == "__main__":
    main(sys.argv[1])
