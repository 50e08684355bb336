"""Classification metrics as sums that add up over batches and workers and are divided once, at the end.

C classes. top-5 is top-C where there are fewer than five classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Scores:
    """What an evaluation found; fractions in [0, 1], loss in nats per image."""

    loss: float
    accuracy: float
    top5_accuracy: float
    macro_f1: float
    num_images: int


class ClassificationSums:
    """Running sums over images: loss, hits and the confusion matrix (rows true, columns predicted)."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.loss = torch.zeros((), dtype=torch.float64)
        self.top5_hits = torch.zeros((), dtype=torch.float64)
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.float64)

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """logits (B, C) float, labels (B,) int64; an empty batch adds nothing."""
        logits, labels = logits.detach().cpu().float(), labels.detach().cpu()
        if len(labels) == 0:
            return
        self.loss += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").double()
        best = logits.topk(min(5, self.num_classes), dim=1).indices
        self.top5_hits += (best == labels[:, None]).any(dim=1).sum()
        places = labels * self.num_classes + logits.argmax(dim=1)
        counts = torch.bincount(places, minlength=self.num_classes**2)
        self.confusion += counts.reshape(self.num_classes, self.num_classes)

    def reduce(self, sum_across: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replace every sum with its sum over all workers."""
        packed = torch.cat([self.loss[None], self.top5_hits[None], self.confusion.flatten()])
        packed = sum_across(packed)
        self.loss, self.top5_hits = packed[0], packed[1]
        self.confusion = packed[2:].reshape(self.num_classes, self.num_classes)

    def result(self) -> Scores:
        """Macro-F1 is the mean over the classes that occur as a label or a prediction, as in scikit-learn."""
        count = float(self.confusion.sum())
        assert count > 0, "no image was evaluated"
        hits, predicted, true = self.confusion.diagonal(), self.confusion.sum(0), self.confusion.sum(1)
        occurs = predicted + true > 0
        f1 = 2 * hits[occurs] / (predicted + true)[occurs]
        return Scores(
            loss=float(self.loss) / count,
            accuracy=float(hits.sum()) / count,
            top5_accuracy=float(self.top5_hits) / count,
            macro_f1=float(f1.mean()),
            num_images=int(count),
        )
