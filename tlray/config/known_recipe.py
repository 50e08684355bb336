"""What one would do by hand: the usual first recipe of each freeze strategy, which a search starts with.

values = KNOWN_RECIPES["full"]

- linear_probe: Adam at its default rate, as in Keras' guide "Transfer learning & fine-tuning" (F. Chollet, 2020), with
  AdamW's decay left at zero.
- partial, gradual, full: SGD with rate 0.001 and momentum 0.9, as in PyTorch's "Transfer Learning for Computer Vision
  Tutorial" (S. Chilamkurthy, 2017). Its steps of the rate are replaced by the schedule of the configuration.
- scratch: SGD with rate 0.1 and momentum 0.9, decay 0.0001 (He et al., CVPR 2016, section 3.4).
"""

from typing import Any

from tlray.config import StrategyName

BY_ADAM = {"optimizer": "adamw", "lr": 0.001, "weight_decay": 0.0, "head_lr_mult": 1.0, "layer_decay": 1.0}
BY_SGD = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0, "head_lr_mult": 1.0, "layer_decay": 1.0}
KNOWN_RECIPES: dict[StrategyName, dict[str, Any]] = {
    "linear_probe": BY_ADAM,
    "partial": BY_SGD | {"lr": 0.001},
    "gradual": BY_SGD | {"lr": 0.001},
    "full": BY_SGD | {"lr": 0.001},
    "scratch": BY_SGD | {"lr": 0.1, "weight_decay": 0.0001},
}
