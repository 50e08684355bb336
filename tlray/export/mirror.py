"""What averaging over an image and its mirror image is worth: test-time augmentation, measured on test images.

gain = mirror_gain(networks, config, images, labels)      # for metrics.json, the card and the report
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from tlray.export.assemble import assemble
from tlray.export.files import BundleConfig
from tlray.export.model import Model
from tlray.runs.results import paired_gain

MOST_IMAGES = 2000  # that it is measured on: two models read and compute each of them here, on a CPU


def mirror_gain(
    networks: Sequence[nn.Module], config: BundleConfig, images: Sequence[Callable[[], Any]], labels: np.ndarray
) -> dict[str, Any]:
    """Accuracy with and without the mirror image on some test images, and their paired difference with its interval.

    `images` give encoded files, labels (N,) are their classes. An image that cannot be read is wrong in both.
    """
    step = -(-len(images) // MOST_IMAGES)
    images, labels = images[::step], labels[::step]
    correct = {}
    for tta in ("none", "flip"):
        network = assemble(networks, config.model_copy(update={"tta": tta}))
        scores = Model(network, config.classes, config.image_preprocessing).score(images)
        answers = [-1 if one.logits is None else int(one.logits.argmax()) for one in scores]
        correct[tta] = np.array(answers) == labels
    gain, low, high = paired_gain(correct["flip"], correct["none"], seed=0)
    return {
        "num_images": len(images),
        "accuracy_without": float(correct["none"].mean()),
        "accuracy_with": float(correct["flip"].mean()),
        "gain": gain,
        "gain_low": low,
        "gain_high": high,
        "forwards": 2 * len(networks),
    }
