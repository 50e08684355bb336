"""What is new in a data set, and which images champion and challenger are compared on.

    growth = compare(manifest, champion_manifest)
    images = judged_images(manifest, champion_manifest)

An image's split follows from its contents, so the old test images are the new ones too and what is new brings test
images of its own. Those that either model has learned from, or was chosen by, are left out: with splits that a person
gives, or other fractions, such ones can occur.
"""

from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from tlray.data.images import Image
from tlray.data.manifest import Manifest


class Growth(BaseModel):
    """Different contents, counted once."""

    model_config = ConfigDict(frozen=True)

    num_images: int
    num_new: int  # contents that the champion's data had not
    num_gone: int  # that it had and are gone
    num_relabelled: int  # of which the class is another one
    new_by_split: dict[str, int]
    new_classes: tuple[str, ...]
    gone_classes: tuple[str, ...]
    shares: dict[str, tuple[int, int]]  # training images by class: (that the champion's data had, new ones)


def compare(manifest: Manifest, before: Manifest) -> Growth:
    """The data as they are now against those that the champion comes from."""
    now, then = _by_content(manifest), _by_content(before)
    new = {content for content in now if content not in then}
    in_train = [(content, image.label) for content, image in now.items() if image.split == "train"]
    old_counts = Counter(label for content, label in in_train if content not in new)
    new_counts = Counter(label for content, label in in_train if content in new)
    relabelled = [
        content
        for content in now.keys() & then.keys()
        if manifest.classes[now[content].label] != before.classes[then[content].label]
    ]
    return Growth(
        num_images=len(now),
        num_new=len(new),
        num_gone=len(then.keys() - now.keys()),
        num_relabelled=len(relabelled),
        new_by_split=dict(Counter(now[content].split for content in sorted(new))),
        new_classes=tuple(name for name in manifest.classes if name not in before.classes),
        gone_classes=tuple(name for name in before.classes if name not in manifest.classes),
        shares={name: (old_counts[label], new_counts[label]) for label, name in enumerate(manifest.classes)},
    )


def judged_images(manifest: Manifest, before: Manifest | None) -> tuple[list[Image], int]:
    """(the test images by content, each once; how many were left out as one of the models has learned from them)."""
    learned = {image.content_id for image in manifest.images if image.split != "test"}
    if before is not None:
        learned |= {image.content_id for image in before.images if image.split != "test"}
    test: dict[tuple[str, int], Image] = {}
    for image in manifest.split("test"):
        test.setdefault((image.content_id, image.label), image)
    kept = [image for image in test.values() if image.content_id not in learned]
    return kept, len(test) - len(kept)


def training_images(manifest: Manifest, before: Manifest, most: int) -> tuple[list[Image], list[Image]]:
    """(old, new) training images, `most` of each at most: those with the smallest content ids, a fair draw."""
    known = {image.content_id for image in before.images}
    distinct = {image.content_id: image for image in manifest.split("train")}
    old = [distinct[content] for content in sorted(distinct.keys() & known)]
    new = [distinct[content] for content in sorted(distinct.keys() - known)]
    return old[:most], new[:most]


def names_of(images: Sequence[Image], classes: Sequence[str]) -> list[str]:
    return [classes[image.label] for image in images]


def _by_content(manifest: Manifest) -> dict[str, Image]:
    return {image.content_id: image for image in manifest.images}
