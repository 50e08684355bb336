"""Images of a set as batches, and the answers of a model about them, in the order of sets.listing.

labels, probabilities = predict(model, folder, "val", transform)      # int (N,), (N, classes)
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.quality_parts.sets import listing

EVALUATION_BATCH = 64
NUM_WORKERS = 2


class Images(Dataset):
    """(image by `transform`, label) of one split or several."""

    def __init__(self, folder: Path, splits: tuple[str, ...], transform: Callable) -> None:
        lists = [listing(folder, split) for split in splits]
        self.files = [file for files, _, _ in lists for file in files]
        self.labels = [label for _, labels, _ in lists for label in labels]
        self._transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.files[row]) as image:
            return self._transform(image.convert("RGB")), self.labels[row]


@torch.inference_mode()
def outputs(model: nn.Module, images: Images) -> np.ndarray:
    """(N, ...) float32 of what the model makes of the images, in evaluation mode."""
    model.eval()
    return torch.cat([model(batch) for batch, _ in DataLoader(images, EVALUATION_BATCH)]).numpy()


@torch.inference_mode()
def outputs_of(model: nn.Module, pixels: torch.Tensor) -> np.ndarray:
    """The same of images (N, 3, H, W) float32 that are decoded already."""
    model.eval()
    return torch.cat([model(batch) for batch in pixels.split(EVALUATION_BATCH)]).numpy()


def score(logits: np.ndarray, labels: list[int]) -> tuple[float, float]:
    """(accuracy, minus the cross-entropy in nats): the larger the better, the second where the first ties."""
    log_probabilities = torch.tensor(logits).log_softmax(1)
    loss = nn.functional.nll_loss(log_probabilities, torch.tensor(labels))
    return float((logits.argmax(1) == np.array(labels)).mean()), -float(loss)
