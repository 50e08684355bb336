"""One training by tlray at its default settings, on noise; of this checkout, or of an earlier one on PYTHONPATH.

    python benchmarks/programs/gpu_fit.py MODEL BATCH STEPS

Prints images a second of the best epoch after the first as one JSON line. It uses no name that has changed.
"""

import json
import sys
import tempfile
from collections.abc import Iterator

import torch

from tlray.config import BackboneConfig, Recipe, StrategyConfig, TrialConfig
from tlray.data.batch import Batch, Streams
from tlray.models.backbone import build_backbone
from tlray.training.checkpoint import TrialFolder
from tlray.training.loop import Feed, fit
from tlray.training.worker import local_worker


def main(name: str, batch: int, steps: int) -> None:
    trial = TrialConfig(
        trial_id="t",
        backbone=BackboneConfig(id=f"torchvision/{name}", weights="none"),
        strategy=StrategyConfig(strategy="full"),
        recipe=Recipe(epochs=3, batch_size=batch),
        seed=0,
    )
    worker = local_worker()
    backbone = build_backbone(trial.backbone, 10, seed=0)
    shape = (batch, 3, *backbone.preprocessing.input_size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    one = Batch((pixels,), torch.randint(0, 10, (batch,)), torch.arange(batch), batch)

    def train(epoch: int, first: int = 0) -> Iterator[Batch]:
        return (one for _ in range(first, steps))

    def val() -> Iterator[Batch]:
        yield Batch((pixels[:2],), one.labels[:2], one.rows[:2], 2)

    streams = Streams(backbone.preprocessing, train, val, val, batch * steps, 2, 2)
    speeds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        feed = Feed(streams, backbone.model)
        fit(
            backbone,
            lambda blocks: feed,
            trial,
            worker,
            TrialFolder(folder),
            lambda metrics: speeds.append(metrics.images_per_second),
        )
    print(json.dumps({"images_per_second": max(speeds[1:])}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
