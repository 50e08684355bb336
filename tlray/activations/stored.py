"""How much of what trials read the store of activations holds. No torch here.

sources = as_stored_now(plan.activations, manifest, store)
"""

import functools
from collections.abc import Sequence

from tlray.activations.keys import ActivationKey
from tlray.activations.planned import ActivationSource
from tlray.activations.store import ActivationStore
from tlray.data.manifest import Manifest


def wanted_images(manifest: Manifest, view: int, with_test: bool) -> list[str]:
    """Content ids that a source needs in one of its draws: only training images have draws beyond the first."""
    splits = ("train",) if view > 0 else ("train", "val", "test") if with_test else ("train", "val")
    return list(dict.fromkeys(image.content_id for image in manifest.images if image.split in splits))


def count_stored(keys: Sequence[ActivationKey], wanted: Sequence[Sequence[str]], store: ActivationStore) -> int:
    """Draws that need not be computed; `wanted`: the content ids of each key."""
    return sum(len(ids) - len(store.missing(key, ids)) for key, ids in zip(keys, wanted, strict=True))


def as_stored_now(
    sources: Sequence[ActivationSource], manifest: Manifest, store: ActivationStore
) -> list[ActivationSource]:
    """The sources with what has been stored since they were planned."""
    wanted = functools.cache(lambda later_view, with_test: wanted_images(manifest, int(later_view), with_test))
    found = []
    for source in sources:
        keys = [ActivationKey(**fields) for fields in source.keys]
        ids = [wanted(view > 0, source.with_test) for view in range(len(keys))]
        found.append(source.model_copy(update={"num_stored": count_stored(keys, ids, store)}))
    return found
