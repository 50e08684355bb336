"""The same contents in two splits, or under two classes: found, counted and named.

    overlap = find_overlap(images, classes)
    check_overlap(overlap, data)             # DataError where they are too many
    overlap.warnings()                       # a line on each kind
    images, left_out = without_conflicts(images, overlap)

What a model has trained on it knows by heart: where such images are validated or tested on, scores flatter. Splits by
contents keep copies together, so only splits that a person gives can share images. Of an image with two classes nobody
but a person knows the right one: all of its copies are left out, so that they are neither learned nor scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tlray.config import DataConfig
from tlray.data.images import SPLITS, BadImage, Image, Images, Split
from tlray.errors import DataError

SHARED: tuple[tuple[Split, Split], ...] = (("val", "train"), ("test", "train"), ("test", "val"))
MOST_OF_A_CLASS = 0.5  # of its different images: with more of them under another class it is none of its own
NUM_NAMED = 10  # pairs in a warning or an error


@dataclass(frozen=True)
class Pair:
    """Two images of the same contents."""

    image: Image
    copy: Image


@dataclass(frozen=True)
class Leak:
    """The images of a split that are in another one too."""

    split: Split
    other: Split
    num_images: int
    num_in_split: int
    pairs: tuple[Pair, ...]  # the first of them

    @property
    def fraction(self) -> float:
        return self.num_images / self.num_in_split


@dataclass(frozen=True)
class Overlap:
    classes: tuple[str, ...]
    leaks: tuple[Leak, ...]
    conflicting: np.ndarray  # (N,) bool
    conflicts: tuple[Pair, ...]  # the first of them
    swallowed: Mapping[str, tuple[int, int]]  # classes most of which conflict: (how many different images, of how many)
    other_copies: Mapping[int, Image]  # row of a conflicting image -> one of its copies under another class

    def warnings(self) -> tuple[str, ...]:
        """A line on each kind; of conflicts as they are once `without_conflicts` has left them out."""
        lines = [
            f"{_count(leak.num_images, leak.num_in_split, leak.split)} also in {leak.other}, byte for byte: scores on "
            f"{leak.split} flatter. {self._named(leak.pairs)}"
            for leak in self.leaks
        ]
        if self.conflicts:
            num, named = int(self.conflicting.sum()), self._named(self.conflicts)
            lines.append(f"{num} images are left out, as the same contents have two or more classes. {named}")
        return tuple(lines)

    def _named(self, pairs: Sequence[Pair]) -> str:
        return "; ".join(f"{self._one(pair.image)} = {self._one(pair.copy)}" for pair in pairs)

    def _one(self, image: Image) -> str:
        return f"{image.uri} ({image.split}, {self.classes[image.label]!r})"


def find_overlap(images: Images, classes: Sequence[str]) -> Overlap:
    """Grows with the copies, not with the images: all that is made of each image is one sorted number."""
    copies = _find_copies(images)
    leaks = (_leak(images, copies, split, other) for split, other in SHARED)
    lowest, highest = np.full(copies.num_groups, len(classes)), np.full(copies.num_groups, -1)
    np.minimum.at(lowest, copies.groups, copies.labels)
    np.maximum.at(highest, copies.groups, copies.labels)
    in_conflict = (lowest != highest)[copies.groups]
    conflicting = np.zeros(len(images), bool)
    conflicting[copies.rows[in_conflict]] = True
    others = _other_copies(images, copies, in_conflict)
    return Overlap(
        classes=tuple(classes),
        leaks=tuple(leak for leak in leaks if leak is not None),
        conflicting=conflicting,
        conflicts=_first_pairs(images, others),
        swallowed=_swallowed(images, conflicting, classes),
        other_copies=others,
    )


def check_overlap(overlap: Overlap, data: DataConfig) -> None:
    """DataError where a split shares more than data.max_leaked_fraction of its images, or a class most of its own."""
    for leak in overlap.leaks:
        if leak.fraction > data.max_leaked_fraction:
            field = "data.train" if getattr(data, leak.split) is None else f"data.{leak.split}"
            raise DataError(
                f"{field}: {_count(leak.num_images, leak.num_in_split, leak.split)} also in {leak.other}, more than "
                f"data.max_leaked_fraction={data.max_leaked_fraction:g} allows: remove them from one of the two, let "
                "tlray split data.train itself, or raise that fraction. "
                f"{overlap._named(leak.pairs)}"
            )
    for name, (num, of) in overlap.swallowed.items():
        raise DataError(
            f"data.train: {num} of {of} different images of class {name!r} are under another class too, byte for byte: "
            "an image has one class; remove the copies, or leave a class out with data.exclude. "
            f"{overlap._named(overlap.conflicts)}"
        )


def without_conflicts(images: Images, overlap: Overlap) -> tuple[Images, tuple[BadImage, ...]]:
    """The images with one class each, and the others with their reasons."""
    if not overlap.other_copies:
        return images, ()
    rows = images.at(np.array(list(overlap.other_copies)))
    left_out = tuple(
        BadImage(image.uri, f"the same contents as {copy.uri}, which is {overlap.classes[copy.label]!r}")
        for image, copy in zip(rows, overlap.other_copies.values(), strict=True)
    )
    return Images(images.table.take(np.flatnonzero(~overlap.conflicting))), left_out


def _count(num: int, of: int, split: str) -> str:
    return f"{num} of {of} {split} images {'is' if num == 1 else 'are'}"


@dataclass(frozen=True)
class _Copies:
    """Rows of contents that occur twice or more, ascending; groups (K,): a number for each one's contents."""

    rows: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    num_groups: int


def _find_copies(images: Images) -> _Copies:
    words = np.ascontiguousarray(images.content_ids).view("<u8")  # (N, 4)
    order = np.argsort(words[:, 0], kind="stable")
    first = words[order, 0]
    same = first[1:] == first[:-1]
    rows = np.sort(order[np.concatenate([same, [False]]) | np.concatenate([[False], same])]) if len(order) else order
    _, groups, counts = np.unique(words[rows], axis=0, return_inverse=True, return_counts=True)
    groups = groups.reshape(-1)
    wanted = counts[groups] > 1  # the others share the first 8 bytes only
    rows, (numbers, groups) = rows[wanted], np.unique(groups[wanted], return_inverse=True)
    return _Copies(rows, groups, images.labels[rows], images.splits[rows], len(numbers))


def _leak(images: Images, copies: _Copies, split: Split, other: Split) -> Leak | None:
    in_split, in_other = (copies.splits == SPLITS.index(name) for name in (split, other))
    first = np.full(copies.num_groups, -1)
    first[copies.groups[in_other][::-1]] = copies.rows[in_other][::-1]  # the lowest row is written last
    leaked = in_split & (first[copies.groups] >= 0)
    num = int(leaked.sum())
    if num == 0:
        return None
    rows, others = copies.rows[leaked][:NUM_NAMED], first[copies.groups[leaked]][:NUM_NAMED]
    pairs = tuple(map(Pair, images.at(rows), images.at(others)))
    return Leak(split, other, num, int((images.splits == SPLITS.index(split)).sum()), pairs)


def _other_copies(images: Images, copies: _Copies, in_conflict: np.ndarray) -> dict[int, Image]:
    rows, groups, labels = (some[in_conflict].tolist() for some in (copies.rows, copies.groups, copies.labels))
    by_group: dict[int, list[tuple[int, int]]] = {}
    for row, group, label in zip(rows, groups, labels, strict=True):
        by_group.setdefault(group, []).append((row, label))
    found = [
        next(other for other, name in by_group[group] if name != label)
        for group, label in zip(groups, labels, strict=True)
    ]
    return dict(zip(rows, images.at(np.array(found, dtype=np.int64)), strict=True))


def _first_pairs(images: Images, copies: Mapping[int, Image]) -> tuple[Pair, ...]:
    """Each contents once, with the copy that comes first in the order of rows."""
    pairs: list[Pair] = []
    seen: set[str] = set()
    for row, copy in copies.items():
        if copy.content_id not in seen and len(pairs) < NUM_NAMED:
            seen.add(copy.content_id)
            pairs.append(Pair(images[row], copy))
    return tuple(pairs)


def _swallowed(images: Images, conflicting: np.ndarray, classes: Sequence[str]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    labels = images.labels
    for label in np.unique(labels[conflicting]).tolist():
        of_class = labels == label
        num, of = _different(images, of_class & conflicting), _different(images, of_class)
        if num > MOST_OF_A_CLASS * of:
            found[classes[label]] = (num, of)
    return found


def _different(images: Images, chosen: np.ndarray) -> int:
    ids = np.ascontiguousarray(images.content_ids[chosen]).view("S32")
    return len(np.unique(ids))
