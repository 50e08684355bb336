"""An export bundle of a tiny network with random weights, made once per process: exporting takes seconds."""

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tlray.catalogue import Preprocessing
from tlray.config import BackboneConfig
from tlray.data.decode import decode
from tlray.data.transforms import eval_transform, normalise
from tlray.export import export_bundle
from tlray.models.backbone import Backbone, build_backbone

CLASSES = ("blue", "green", "red")  # of the image_folder fixture
BACKBONE = BackboneConfig(id="timm/test_resnet", weights="none", input_size=64)
COUNTS = {name: {"blue": 40, "green": 8, "red": 12} for name in ("train", "val", "test")}
METRICS: dict[str, Any] = {
    "trial_id": "001-test_resnet-full",
    "rank": 1,
    "epochs": 3,
    "best_epoch": 2,
    "val_accuracy": 0.9,
    "val_top5_accuracy": 1.0,
    "val_macro_f1": 0.89,
    "test_accuracy": 0.85,
    "test_top5_accuracy": 1.0,
    "test_macro_f1": 0.84,
    "gain": 0.25,
    "gain_low": 0.11,
    "gain_high": 0.39,
    "num_params": 1000,
    "num_trainable_params": 10,
    "seed": 0,
}


@dataclass(frozen=True)
class SmallBundle:
    folder: Path  # shared: copy before you change it
    model: nn.Module
    preprocessing: Preprocessing


@cache
def small_bundle(image_folder: Path) -> SmallBundle:
    backbone = build_backbone(BACKBONE, len(CLASSES), seed=1)
    backbone.model.eval()
    images = [
        eval_transform(torch.from_numpy(decode(path.read_bytes())).permute(2, 0, 1), backbone.preprocessing)
        for path in sorted(image_folder.glob("*/*.jpg"))
    ]
    _spread_predictions(backbone, normalise(torch.stack(images), backbone.preprocessing))
    folder = Path(tempfile.mkdtemp(prefix="tlray-test-bundle-"))
    atexit.register(shutil.rmtree, folder)
    export_bundle(
        model=backbone.model,
        backbone=BACKBONE,
        classes=CLASSES,
        preprocessing=backbone.preprocessing,
        strategy="full",
        params={"lr": 0.001, "epochs": 3},
        metrics=METRICS,
        data_summary=COUNTS,
        samples=torch.stack(images[::12]),
        destination=str(folder / "1-test_resnet"),
    )
    return SmallBundle(folder / "1-test_resnet", backbone.model, backbone.preprocessing)


@torch.no_grad()
def _spread_predictions(backbone: Backbone, images: torch.Tensor) -> None:
    """Change the head so that the images (B, 3, H, W) are not all given the same class."""
    head = backbone.model.get_submodule(backbone.head[0])
    assert isinstance(head, nn.Linear)
    logits = backbone.model(images)
    head.bias -= logits.mean(dim=0)
    head.weight /= logits.std(dim=0)[:, None]
    head.bias /= logits.std(dim=0)
