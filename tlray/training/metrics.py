"""Classification metrics as sums that add up over batches and workers and are divided once, at the end.

C classes. top-5 is top-C where there are fewer than five classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tlray.process.device import CPU


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

    def __init__(self, num_classes: int, device: torch.device = CPU) -> None:
        """The sums stay on the device until `result`: asking for them after each batch would keep a GPU waiting."""
        self.num_classes = num_classes
        self.device = device
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.top5_hits = torch.zeros((), dtype=torch.float64, device=device)
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.float64, device=device)

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """logits (B, C) float, labels (B,) int64; an empty batch adds nothing."""
        logits, labels = logits.detach().to(self.device).float(), labels.detach().to(self.device)
        if len(labels) == 0:
            return
        self.loss += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").double()
        best = logits.topk(min(5, self.num_classes), dim=1).indices
        self.top5_hits += (best == labels[:, None]).any(dim=1).sum()
        places = labels * self.num_classes + logits.argmax(dim=1)
        self.confusion.view(-1).index_add_(0, places, torch.ones_like(places, dtype=torch.float64))

    def reduce(self, sum_across: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replace every sum with its sum over all workers."""
        packed = torch.cat([self.loss[None], self.top5_hits[None], self.confusion.flatten()])
        packed = sum_across(packed.cpu())
        self.loss, self.top5_hits = packed[0], packed[1]
        self.confusion = packed[2:].reshape(self.num_classes, self.num_classes)

    def result(self) -> Scores:
        """Macro-F1 is the mean over the classes that occur as a label or a prediction, as in scikit-learn."""
        confusion = self.confusion.cpu()
        count = float(confusion.sum())
        assert count > 0, "no image was evaluated"
        hits, predicted, true = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
        occurs = predicted + true > 0
        f1 = 2 * hits[occurs] / (predicted + true)[occurs]
        return Scores(
            loss=float(self.loss) / count,
            accuracy=float(hits.sum()) / count,
            top5_accuracy=float(self.top5_hits) / count,
            macro_f1=float(f1.mean()),
            num_images=int(count),
        )
