"""What a backbone made of the images that it is ranked on: features, and its own classes' probabilities where it can.

features = read_features(backbone, reader)                                  # (N, D) float32
probabilities = read_probabilities(config, backbone, reader)                # (N, Z) float32, or None

Features are what a linear probe's head reads, averaged over the positions of a map or the tokens of a sequence.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from tlray.activations.reader import ActivationReader
from tlray.config import BackboneConfig
from tlray.errors import BackboneError
from tlray.models.backbone import Backbone, load_classifier
from tlray.models.blocks import trace_model
from tlray.models.freeze import freeze
from tlray.models.split import trainable_suffix
from tlray.training.probes import StackedHeads

ROWS_AT_ONCE = 128


def read_features(backbone: Backbone, reader: ActivationReader) -> np.ndarray:
    """(N, D) float32 of the reader's images, whose activations are those behind all blocks."""
    freeze(backbone, 0)
    backbone.model.eval()
    heads = StackedHeads(backbone, num_rows=1)
    rows = [torch.cat([_pooled(value) for value in heads.shared(values)], dim=1) for values in _batches(reader)]
    return torch.cat(rows).numpy()


def read_probabilities(config: BackboneConfig, backbone: Backbone, reader: ActivationReader) -> np.ndarray | None:
    """p(class | image) (N, Z) float32 by the head that came with the weights; None where there is none.

    A model built with options is another one than that head was trained with.
    """
    if config.weights == "none" or config.options:
        return None
    try:
        model, _, _ = load_classifier(config.id, config.weights)
    except BackboneError:  # a file without a classifier, or labels that nobody knows
        return None
    source = replace(backbone, model=model, trace=trace_model(model, backbone.head))
    suffix = trainable_suffix(source, len(backbone.blocks))
    with torch.inference_mode():
        return torch.cat([suffix(*values).softmax(dim=1) for values in _batches(reader)]).numpy()


def _batches(reader: ActivationReader) -> Iterator[tuple[torch.Tensor, ...]]:
    for start in range(0, len(reader), ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, len(reader)))
        yield tuple(value.float() for value in reader.read(rows))


def _pooled(value: torch.Tensor) -> torch.Tensor:
    """(B, D), (B, D, H, W) or (B, tokens, D) -> (B, D)."""
    if value.ndim == 4:
        return value.mean(dim=(2, 3))
    return value.mean(dim=1) if value.ndim == 3 else value.flatten(1)
