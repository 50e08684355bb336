"""`ClassificationSums` for T stacked heads at once: the same scores of every row, from logits (B, T, C).

    sums = StackedSums(num_rows, num_classes)
    sums.update(logits, labels)                      # a batch
    scores = sums.result()                           # one Scores a row

The confusion matrix itself is not kept, only its diagonal and its margins, which is all that the scores need: for 256
rows of 1,000 classes it would take 2 GB.
"""

import torch

from tlray.process.device import CPU
from tlray.training.metrics import Scores


class StackedSums:
    """Running sums over images, (T,) and (T, C) float64."""

    def __init__(self, num_rows: int, num_classes: int, device: torch.device = CPU) -> None:
        """The sums stay on the device until `result`."""
        self.device = device

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.loss = zeros(num_rows)
        self.top5_hits = zeros(num_rows)
        self.hits = zeros(num_rows, num_classes)  # by class
        self.predicted = zeros(num_rows, num_classes)
        self.true = zeros(num_classes)

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """logits (B, T, C) float32, labels (B,) int64."""
        logits, labels = logits.detach().to(self.device), labels.to(self.device)
        num_images, num_rows, num_classes = logits.shape
        labels_by_row = labels[:, None].expand(num_images, num_rows)
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels_by_row.flatten(), reduction="none")
        self.loss += losses.reshape(num_images, num_rows).sum(dim=0).double()
        predictions = logits.argmax(dim=2)
        right = (predictions == labels_by_row).double()
        self.hits.scatter_add_(1, labels_by_row.T, right.T)
        self.predicted.scatter_add_(1, predictions.T, torch.ones_like(right.T))
        self.true.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
        best = logits.topk(min(5, num_classes), dim=2).indices
        self.top5_hits += (best == labels_by_row[..., None]).any(dim=2).sum(dim=0)

    def result(self) -> list[Scores]:
        """Macro-F1 as in ClassificationSums: the mean over the classes that occur as a label or a prediction."""
        count = float(self.true.sum())
        assert count > 0, "no image was evaluated"
        occurrences = self.predicted + self.true
        f1 = torch.where(occurrences > 0, 2 * self.hits / occurrences, 0.0).sum(dim=1) / (occurrences > 0).sum(dim=1)
        columns = (self.loss / count, self.hits.sum(dim=1) / count, self.top5_hits / count, f1)
        return [
            Scores(loss, accuracy, top5_accuracy, macro_f1, int(count))
            for loss, accuracy, top5_accuracy, macro_f1 in zip(*(column.tolist() for column in columns), strict=True)
        ]
