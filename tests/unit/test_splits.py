"""Splits by contents: fixed for each image, on average of the stated size, and honest about small classes."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from tlray.config import DataConfig
from tlray.data.images import SPLITS
from tlray.data.splits import FEW_IMAGES, check_counts, place, position
from tlray.errors import DataError

IDS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(4000)]


def splits_of(ids: list[str], split_seed: int = 0, test: float = 0.15, val: float = 0.15) -> list[str]:
    array = np.frombuffer(bytes.fromhex("".join(ids)), dtype=np.uint8).reshape(-1, 32)
    codes = place(array, split_seed=split_seed, test_fraction=test, val_fraction=val)
    return [SPLITS[code] for code in codes]


def test_splits_are_those_of_a_plain_reading_of_the_rule() -> None:
    for seed in (0, 7):
        numbers = [int(hashlib.sha256(f"{seed}/{id_}".encode()).hexdigest()[:16], 16) / 2**64 for id_ in IDS]
        expected = ["test" if u < 0.1 else "val" if u < 0.3 else "train" for u in numbers]
        assert splits_of(IDS, seed, 0.1, 0.2) == expected
        assert [position(seed, content_id) for content_id in IDS] == pytest.approx(numbers, abs=1e-15)


def test_every_split_has_its_fraction_on_average() -> None:
    counts = Counter(splits_of(IDS, test=0.1, val=0.2))
    for split, fraction in {"test": 0.1, "val": 0.2, "train": 0.7}.items():
        spread = (fraction * (1 - fraction) * len(IDS)) ** 0.5
        assert abs(counts[split] - fraction * len(IDS)) < 4 * spread


def test_an_images_split_does_not_depend_on_the_others() -> None:
    assert splits_of(IDS)[100:200] == splits_of(IDS[100:200])


def test_a_larger_test_fraction_takes_nothing_out_of_test() -> None:
    small, large = splits_of(IDS, test=0.1), splits_of(IDS, test=0.2)
    assert all(after == "test" for before, after in zip(small, large, strict=True) if before == "test")


def test_a_fraction_of_zero_takes_nothing() -> None:
    assert set(splits_of(IDS, test=0.0)) == {"train", "val"}
    assert set(splits_of(IDS, test=0.0, val=0.0)) == {"train"}


def test_another_split_seed_gives_other_splits() -> None:
    both = Counter(zip(splits_of(IDS, 0, 0.5, 0.25), splits_of(IDS, 1, 0.5, 0.25), strict=True))
    assert both["test", "test"] == pytest.approx(len(IDS) / 4, rel=0.1)


def counts_of(**classes: tuple[int, int, int]) -> tuple[list[str], np.ndarray]:
    """class=(train, val, test)"""
    columns = [("train", "val", "test").index(split) for split in SPLITS]
    return list(classes), np.array([[counts[column] for column in columns] for counts in classes.values()])


def test_classes_with_few_images_are_reported_by_split_and_count() -> None:
    classes, counts = counts_of(cat=(90, 4, 9), dog=(90, 9, 0), owl=(90, 9, 1))
    assert check_counts(classes, counts, DataConfig(train="x")) == (
        f"val: 1 class has fewer than {FEW_IMAGES} different images: 'cat' (4)",
        f"test: 2 classes have fewer than {FEW_IMAGES} different images: 'dog' (0), 'owl' (1)",
    )
    assert check_counts(*counts_of(cat=(5, 5, 5), dog=(5, 5, 5)), DataConfig(train="x")) == ()


def test_a_thousand_small_classes_make_one_short_note() -> None:
    classes, counts = counts_of(**{f"class{number}": (9, 1, 9) for number in range(1000)})
    [note] = check_counts(classes, counts, DataConfig(train="x"))
    assert note.startswith("val: 1000 classes")
    assert note.endswith("'class9' (1) and 990 more")


def test_an_empty_split_and_a_class_without_train_images_are_errors() -> None:
    with pytest.raises(DataError, match=r"falls to val \(data.val_fraction=0.15, data.split_seed=0\)"):
        check_counts(*counts_of(cat=(9, 0, 9), dog=(9, 0, 9)), DataConfig(train="x"))
    with pytest.raises(DataError, match="class 'dog' has 3 different readable images, none of them in train"):
        check_counts(*counts_of(cat=(9, 9, 9), dog=(0, 2, 1)), DataConfig(train="x"))
