"""What a trial tells of each epoch. No torch here: a cluster's driver reads it too."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """One finished epoch; fractions in [0, 1], losses in nats per image, `lr` the head's rate at its end."""

    epoch: int  # 1-based
    train_loss: float
    val_loss: float
    val_accuracy: float
    val_top5_accuracy: float
    val_macro_f1: float
    lr: float
    seconds: float
    images_per_second: float  # training images, over all workers of the trial


Report = Callable[[EpochMetrics], None]
