"""The features that drift is measured in: what the store of activations holds of the champion's backbone.

drift = drift_of(run, champion_manifest, backbone_id, most=1000)
"""

from collections.abc import Sequence

import numpy as np

from tlray.activations.keys import ActivationKey
from tlray.activations.location import open_store
from tlray.activations.planned import ActivationSource
from tlray.activations.store import ActivationStore
from tlray.data.images import Image
from tlray.data.manifest import Manifest
from tlray.errors import TlrayError
from tlray.runs.prepare import Run
from tlray.workflows.retrain.drift import Drift, measure_drift
from tlray.workflows.retrain.images import names_of, training_images

ROWS_AT_ONCE = 256
FEWEST = 5  # images on either side; fewer say nothing


def drift_of(run: Run, before: Manifest, backbone: str, most: int) -> Drift | str:
    """Drift of the training images that `before` had not, or why it is not known. Nothing is computed for it."""
    old, new = training_images(run.manifest, before, most)
    if min(len(old), len(new)) < FEWEST:
        return f"{len(new)} new training images beside {len(old)} old ones: too few to compare"
    source = _deepest(run.plan.activations, backbone)
    if source is None:
        return "this run keeps no activations of frozen blocks, which the comparison is made in"
    try:
        store = open_store(run.config)
        features = _features(store, source, [*old, *new])
    except TlrayError as error:  # evicted meanwhile: a summary less is no reason to lose a retraining
        return str(error)
    classes = run.manifest.classes
    old_names, new_names = names_of(old, classes), names_of(new, classes)
    return measure_drift(features[: len(old)], old_names, features[len(old) :], new_names, source.backbone.id)


def _deepest(sources: Sequence[ActivationSource], backbone: str) -> ActivationSource | None:
    """The cut nearest to the head, of `backbone` where there is one, that holds the images as they are evaluated."""
    kept = [source for source in sources if source.materialise]
    of_backbone = [source for source in kept if source.backbone.id == backbone]
    return max(of_backbone or kept, key=lambda source: source.num_frozen, default=None)


def _features(store: ActivationStore, source: ActivationSource, images: Sequence[Image]) -> np.ndarray:
    """(N, D) float32, averaged over positions and tokens."""
    reader = store.reader(ActivationKey(**source.keys[0]), [image.content_id for image in images])
    rows = []
    for start in range(0, len(images), ROWS_AT_ONCE):
        values = reader.read(np.arange(start, min(start + ROWS_AT_ONCE, len(images))))
        rows.append(np.concatenate([_pooled(value.float().numpy()) for value in values], axis=1))
    reader.close()
    return np.concatenate(rows)


def _pooled(value: np.ndarray) -> np.ndarray:
    """(B, D), (B, D, H, W) or (B, tokens, D) -> (B, D)."""
    if value.ndim == 4:
        return value.mean(axis=(2, 3))
    return value.mean(axis=1) if value.ndim == 3 else value.reshape(len(value), -1)
