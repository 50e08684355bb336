"""Five tasks of real images with train, validation and test folders, drawn anew by each seed.

    folder = make_set(Path("quality/sets"), SETS["dogcat"], shared, seed=0)      # folder/{train,val,test}/CLASS/FILE

Each is drawn from all files of its sources (their train and val folders together, without copies of the same bytes), so
seeds are repeated splits: an image that trains for one seed may test for another. `longtail` has exponentially fewer
images of each next class (Cui et al., CVPR 2019), in an order drawn by the seed; its test images are balanced.
"""

import hashlib
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "val", "test")
VAL_SHARE = 0.2  # of the labelled images
OWN_SHARE = 244 / 397  # of hymenoptera's images, what its authors train on


@dataclass(frozen=True)
class ImageSet:
    """Sizes are images of each class. `labelled` is train and val together."""

    name: str
    sources: tuple[str, ...]
    labelled: int | None  # None: OWN_SHARE of all
    test: int | None  # None: all others
    tail: float = 1.0  # the rarest class has so many times fewer than the most frequent one
    version: int = 1  # raised where a change draws other images: its cells then run again


SETS = {
    one.name: one
    for one in (
        ImageSet("hymenoptera", ("hymenoptera",), labelled=None, test=None),
        ImageSet("dogcat", ("dogcat",), labelled=150, test=500),
        ImageSet("cifar10", ("cifar10",), labelled=40, test=150),
        ImageSet("longtail", ("cifar10",), labelled=100, test=100, tail=10.0),
        ImageSet("fewshot", ("hymenoptera", "dogcat"), labelled=10, test=180),
    )
}


def make_set(parent: Path, images: ImageSet, shared: Path, seed: int) -> Path:
    """The folder of the set, made unless it is there."""
    target = parent / f"{images.name}-{images.version}-{seed}"
    if target.exists():
        return target
    building = target.with_suffix(".building")
    shutil.rmtree(building, ignore_errors=True)
    files = _files_of(images, shared)
    for label, splits in draw({label: len(found) for label, found in files.items()}, images, seed).items():
        for split, rows in splits.items():
            (building / split / label).mkdir(parents=True)
            for row in rows:
                shutil.copy(files[label][row], building / split / label / f"{row:05}{files[label][row].suffix}")
    building.rename(target)
    return target


def draw(available: Mapping[str, int], images: ImageSet, seed: int) -> dict[str, dict[str, list[int]]]:
    """Numbers of files by class -> numbers of those that each split gets; val has one of each class at least."""
    order = sorted(available)
    chance = random.Random(f"{images.name} {seed}")
    chance.shuffle(order)
    drawn = {}
    for place, label in enumerate(order):
        labelled = labelled_count(images, available[label], place, len(order))
        rows = chance.sample(range(available[label]), available[label])
        num_val = max(1, round(VAL_SHARE * labelled))
        test = rows[labelled:] if images.test is None else rows[labelled : labelled + images.test]
        assert images.test is None or len(test) == images.test, f"{label} has too few images"
        drawn[label] = {"train": rows[num_val:labelled], "val": rows[:num_val], "test": test}
    return drawn


def labelled_count(images: ImageSet, available: int, place: int, num_classes: int) -> int:
    """Train and val images of the class at `place`, from the most frequent one on."""
    if images.labelled is None:
        return round(available * OWN_SHARE)
    return round(images.labelled * images.tail ** (-place / max(1, num_classes - 1)))


def listing(folder: Path, split: str) -> tuple[list[Path], list[int], list[str]]:
    """(files, labels as numbers, classes); sorted by class and name, so that rows mean the same for everyone."""
    classes = sorted(place.name for place in (folder / "train").iterdir())
    files = [sorted((folder / split / name).iterdir()) for name in classes]
    return [file for of in files for file in of], [i for i, of in enumerate(files) for _ in of], classes


def describe_set(folder: Path) -> str:
    """`400 / 80 / 716, 5 classes`: images to train on, to validate, to test."""
    counts = [len(listing(folder, split)[0]) for split in SPLITS]
    return f"{' / '.join(map(str, counts))}, {len(listing(folder, 'train')[2])} classes"


def _files_of(images: ImageSet, shared: Path) -> dict[str, list[Path]]:
    """By class, without placeholders and without a second file of the same bytes."""
    seen: set[str] = set()
    found: dict[str, list[Path]] = {}
    for source in images.sources:
        for place in sorted((shared / "data" / source).glob("*/*/")):
            for file in sorted(place.iterdir()):
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                if file.suffix != ".gif" and digest not in seen:
                    seen.add(digest)
                    found.setdefault(place.name, []).append(file)
    return found
