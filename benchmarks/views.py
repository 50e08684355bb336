"""What do stored augmented views cost in accuracy, against augmentation drawn anew in every epoch?

    python -m benchmarks.views [--seeds 3] [--epochs 12]

Ants and bees (244 training images), mobilenet_v2 with ImageNet weights, augmentation "standard", a linear probe and a
partial trial with the last five blocks free, each with views 0 (live), 1 (no augmentation), 2, 4 and 8, over several
seeds. Accuracy is of the 153 images of the data set's own validation folder, at the best epoch by validation on 10 % of
the training images. The last line is one JSON object: {strategy: {views: {accuracy, std, images}}}, where images are
those that went through a frozen prefix. Images and weights are looked for in $TLRAY_SHARED, by default ../shared.
"""

import argparse
import io
import json
import os
import platform
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from rich.console import Console

from tlray.config import RunConfig
from tlray.distributed.cluster import connect
from tlray.distributed.on_cluster import plan_on_cluster
from tlray.distributed.sweep import run_sweep
from tlray.runs.prepare import new_run_uri, prepare_run
from tlray.runs.trials import load_results
from tlray.workflows.progress import SweepProgress

VIEWS = (0, 1, 2, 4, 8)


def make_config(shared: Path, storage: str, seed: int, epochs: int) -> RunConfig:
    backbone = {
        "id": "torchvision/mobilenet_v2.IMAGENET1K_V1",
        "weights": str(shared / "weights/mobilenet_v2.safetensors"),
    }
    strategies = [
        {"strategy": "linear_probe", "training": {"lr": 0.003}},
        {"strategy": "partial", "trainable_blocks": 5, "training": {"lr": 0.0003}},
    ]
    return RunConfig.model_validate(
        {
            "name": "views",
            "storage": storage,
            "seed": seed,
            "data": {
                "train": str(shared / "data/hymenoptera/train"),
                "test": str(shared / "data/hymenoptera/val"),
                "val_fraction": 0.1,
                "exclude": ["*.gif"],
            },
            "backbones": [backbone],
            "strategies": strategies,
            "training": {"epochs": epochs, "batch_size": 16, "augmentation": "standard"},
            "search_space": {"views": {"grid": VIEWS}},
            "activations": {"materialise": "always"},
            "baseline": {
                "backbone": {"id": "timm/test_resnet", "weights": "none", "input_size": 32},
                "training": {"epochs": 1},
            },
            "sweep": {"scheduler": "fifo"},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    shared = Path(os.environ.get("TLRAY_SHARED", "../shared")).absolute()
    if not (shared / "weights").is_dir():
        parser.error(f"there are no weights in {shared}; set TLRAY_SHARED")
    connect()
    accuracies: dict[tuple[str, int], list[float]] = defaultdict(list)
    images: dict[tuple[str, int], list[int]] = defaultdict(list)
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as storage:
            config = make_config(shared, storage, seed, options.epochs)
            run = prepare_run(plan_on_cluster(config), new_run_uri(config))
            with SweepProgress(run.trials, (), Console(file=io.StringIO())) as progress:
                run_sweep(run, progress)
            for row in load_results(run.uri):
                if not row.is_baseline and row.test_accuracy is not None:
                    accuracies[row.strategy, row.params["views"]].append(row.test_accuracy)
                    images[row.strategy, row.params["views"]].append(row.prefix_images_computed)
    print(f"{platform.machine()}, torch {torch.__version__}, {options.seeds} seeds, {options.epochs} epochs")
    print(f"{'strategy':14} {'views':>5} {'accuracy':>9} {'std':>6} {'images through the prefix':>26}")
    outcome: dict[str, dict[int, dict[str, float]]] = defaultdict(dict)
    for (strategy, views), scores in sorted(accuracies.items()):
        mean, std = statistics.mean(scores), statistics.pstdev(scores)
        computed = statistics.mean(images[strategy, views])
        outcome[strategy][views] = {"accuracy": round(mean, 4), "std": round(std, 4), "images": round(computed)}
        print(f"{strategy:14} {views:5} {mean:9.3f} {std:6.3f} {computed:26.0f}")
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
