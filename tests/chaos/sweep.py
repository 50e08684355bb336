"""The small runs that are disturbed: their images, their configurations, and how the commands that make them are given.

Shapes drawn at random on random grounds: learnt a little in a few epochs, so that trials differ and have an order.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHAPES = ("bar", "disc", "ring")
IMAGES_PER_SHAPE = 16
SIDE = 32
NETWORK = {"id": "timm/test_resnet", "weights": "none", "input_size": SIDE}


@dataclass(frozen=True)
class Flow:
    """A command that makes something, and what it makes."""

    name: str  # sweep, retrain, predict
    first: tuple[str, ...]  # the command's arguments
    resumes: bool  # whether `tlray resume RUN` goes on with it; else the same command does


def draw_images(folder: Path) -> None:
    """48 PNGs, in a folder of each shape; the same ones every time."""
    random = np.random.default_rng(0)
    across, down = np.mgrid[:SIDE, :SIDE]
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True)
        for index in range(IMAGES_PER_SHAPE):
            centre, size = random.uniform(10, 22, 2), random.uniform(5, 9)
            distance = np.hypot(across - centre[0], down - centre[1])
            inside = {
                "bar": abs(across - centre[0]) < size / 3,
                "disc": distance < size,
                "ring": (distance < size) & (distance > size - 2.5),
            }[shape]
            pixels = np.where(inside[..., None], random.uniform(120, 255, 3), random.uniform(0, 120, 3))
            pixels = pixels + random.normal(0, 25, pixels.shape)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / shape / f"{index:02}.png")


def sweep_config(images: str, storage: str, cache: Path, **fields: Any) -> str:
    """A baseline, and linear probes, a partly and a fully trained network at two learning rates, as YAML."""
    config = {
        "name": "sweep",
        "storage": storage,
        "data": {"train": images, "val_fraction": 0.25, "test_fraction": 0.25, "prepare": "always"},
        "backbones": [NETWORK],
        "strategies": [
            {"strategy": "linear_probe", "solver": "gradient"},
            {"strategy": "partial", "trainable_blocks": 1},
            "full",
        ],
        "search_space": {"lr": {"grid": [0.003, 0.01]}},
        "training": {"epochs": 3, "batch_size": 8, "augmentation": "light"},
        "baseline": {"backbone": NETWORK},
        "sweep": {"scheduler": "fifo", "max_failures": 2},
        "activations": {"materialise": "always", "cache": str(cache)},  # never as the clock has it
        "export": {"top_k": 1},
        **fields,
    }
    return json.dumps(config, indent=1)


def sweep_flow(config: Path) -> Flow:
    return Flow("sweep", ("run", str(config)), resumes=True)


def retrain_flow(config: Path) -> Flow:
    return Flow("retrain", ("retrain", str(config)), resumes=False)


def predict_flow(bundle: Path, images: Path, output: str) -> Flow:
    return Flow("predict", ("predict", str(bundle), str(images), "--output", output), resumes=False)
