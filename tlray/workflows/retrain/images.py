"""What is new in a data set, and which images champion and challenger are compared on.

    growth = compare(manifest, champion_manifest)
    images = judged_images(manifest, champion_manifest)

An image's split follows from its contents, so the old test images are the new ones too and what is new brings test
images of its own. Those that either model has learned from, or was chosen by, are left out: with splits that a person
gives, or other fractions, such ones can occur.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from tlray.data.images import SPLITS, Images
from tlray.data.manifest import Manifest

TEST, TRAIN = SPLITS.index("test"), SPLITS.index("train")


class _Contents(NamedTuple):
    """The different contents of a manifest, sorted; of copies one row."""

    ids: np.ndarray  # (N,) S32
    rows: np.ndarray  # (N,) of the manifest's images
    labels: np.ndarray  # (N,) int32
    splits: np.ndarray  # (N,) int8


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
    now, then = _contents(manifest), _contents(before)
    place = np.minimum(np.searchsorted(then.ids, now.ids), max(0, len(then.ids) - 1))
    known = then.ids[place] == now.ids if len(then.ids) else np.zeros(len(now.ids), bool)
    names, names_before = _names(manifest)[now.labels[known]], _names(before)[then.labels[place[known]]]
    num_new = np.bincount(now.splits[~known], minlength=len(SPLITS))
    trained = now.splits == TRAIN
    old_counts, new_counts = (
        np.bincount(now.labels[trained & mask], minlength=len(manifest.classes)).tolist() for mask in (known, ~known)
    )
    return Growth(
        num_images=len(now.ids),
        num_new=int(num_new.sum()),
        num_gone=int(len(then.ids) - known.sum()),
        num_relabelled=int((names != names_before).sum()),
        new_by_split={split: int(count) for split, count in zip(SPLITS, num_new, strict=True) if count},
        new_classes=tuple(name for name in manifest.classes if name not in before.classes),
        gone_classes=tuple(name for name in before.classes if name not in manifest.classes),
        shares=dict(zip(manifest.classes, zip(old_counts, new_counts, strict=True), strict=True)),
    )


def judged_images(manifest: Manifest, before: Manifest | None) -> tuple[Images, int]:
    """(the test images, copies once; how many were left out as one of the models has learned from them)."""
    images = _images(manifest)
    ids, labels = _ids(images), images.labels
    rows = np.flatnonzero(images.splits == TEST)
    rows = rows[np.lexsort((labels[rows], ids[rows]))]
    is_copy = (ids[rows[1:]] == ids[rows[:-1]]) & (labels[rows[1:]] == labels[rows[:-1]])
    rows = rows[np.concatenate([[True], ~is_copy])] if len(rows) else rows
    learned = [_ids(some)[some.splits != TEST] for some in (images, *([] if before is None else [_images(before)]))]
    kept = ~np.isin(ids[rows], np.concatenate(learned))
    return Images(images.table.take(np.sort(rows[kept]))), int((~kept).sum())


def training_images(manifest: Manifest, before: Manifest, most: int) -> tuple[Images, Images]:
    """(old, new) training images, `most` of each at most: those with the smallest content ids, a fair draw."""
    now = _contents(manifest)
    known = np.isin(now.ids, _ids(_images(before)))
    trained = now.splits == TRAIN
    old, new = (now.rows[trained & mask][:most] for mask in (known, ~known))
    table = _images(manifest).table
    return Images(table.take(old)), Images(table.take(new))


def names_of(images: Images, classes: Sequence[str]) -> list[str]:
    return [classes[label] for label in images.labels.tolist()]


def _contents(manifest: Manifest) -> _Contents:
    images = _images(manifest)
    ids, rows = np.unique(_ids(images), return_index=True)
    return _Contents(ids, rows, images.labels[rows], images.splits[rows])


def _images(manifest: Manifest) -> Images:
    assert isinstance(manifest.images, Images)
    return manifest.images


def _ids(images: Images) -> np.ndarray:
    """(N,) S32; numpy ignores zero bytes at the end of such strings, which changes nothing where all are 32 long."""
    return np.ascontiguousarray(images.content_ids).view("S32").ravel() if len(images) else np.empty(0, "S32")


def _names(manifest: Manifest) -> np.ndarray:
    return np.array(manifest.classes, dtype=object)
