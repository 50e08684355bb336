"""An epoch over more images than a node's copies of shards have room for."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from shard_samples import add_images, image_bytes, keep_bucket_in, number_of

from tlray import storage
from tlray.config import DataConfig
from tlray.data.images import Image, Images
from tlray.data.order import train_steps
from tlray.data.shards import ImageShards
from tlray.data.windows import windows_of

REMOTE = "s3://photos/shards"
NUM_IMAGES = 400


def config(cache_max_bytes: int | None, prepare: str = "always") -> DataConfig:
    limit = None if cache_max_bytes is None else cache_max_bytes / 10**9
    return DataConfig(train="unused", prepare=prepare, cache_max_gb=limit)


def images_of(store: ImageShards) -> Images:
    """The images that the store holds, in the order of their names, as a manifest has them."""
    rows = sorted(store.index().to_pylist(), key=lambda row: number_of(row["uri"]))
    return Images.of(
        Image(
            uri=row["uri"],
            label=0,
            split="train",
            content_id=hashlib.sha256(image_bytes(number_of(row["uri"]))).hexdigest(),
            num_bytes=row["num_bytes"],
            width=row["width"],
            height=row["height"],
            shard=row["shard"],
            row=row["row"],
        )
        for row in rows
    )


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageShards:
    """Shards on a server, of images that were prepared in random order; room for a quarter of them on this node."""
    keep_bucket_in(tmp_path / "bucket", monkeypatch)
    numbers = np.random.default_rng(0).permutation(NUM_IMAGES).tolist()
    with ImageShards(REMOTE, "").writer(shard_bytes=10_000) as writer:
        add_images(writer, numbers)
    total = sum(len(image_bytes(number)) for number in numbers)
    return ImageShards(REMOTE, str(tmp_path / "cache"), total // 4)


def fetches_in_an_epoch(
    store: ImageShards, steps: list[np.ndarray], images: Images, monkeypatch: pytest.MonkeyPatch
) -> int:
    fetched: list[str] = []
    real = storage.download

    def counted(uri: str, path: Path) -> None:
        fetched.append(uri)
        real(uri, path)

    monkeypatch.setattr(storage, "download", counted)
    for step in steps:
        for number, image in zip(step.tolist(), images.at(step), strict=True):
            assert store.read(image.shard, image.row) == image_bytes(number)
    return len(fetched)


def test_an_epoch_over_more_than_a_node_holds_fetches_each_shard_once(
    store: ImageShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_of(store)
    total = int(images.table["num_bytes"].to_numpy().sum())
    windows = windows_of(images, config(total // 4))
    assert windows is not None
    num_shards = len(set(images.table["shard"].to_pylist()))
    assert num_shards > 20
    steps = train_steps(len(images), 16, 0, 1, windows)
    assert sorted(np.concatenate(steps).tolist()) == list(range(NUM_IMAGES))
    assert fetches_in_an_epoch(store, steps, images, monkeypatch) == num_shards
    store.close()
    whole = train_steps(len(images), 16, 0, 1)
    assert fetches_in_an_epoch(store, whole, images, monkeypatch) > 3 * num_shards, "what windows are there for"


def test_there_are_windows_only_where_copies_of_shards_have_a_limit_that_the_images_exceed(store: ImageShards) -> None:
    images = images_of(store)
    total = int(images.table["num_bytes"].to_numpy().sum())
    assert windows_of(images, config(None)) is None
    assert windows_of(images, config(total)) is None
    assert windows_of(images, config(total - 1)) is not None
    assert windows_of(images, config(total - 1, prepare="never")) is None
    assert windows_of(images[:0], config(1)) is None


def test_a_limit_below_one_shard_still_goes_through_all_images(store: ImageShards) -> None:
    images = images_of(store)
    windows = windows_of(images, config(1))
    assert windows is not None
    assert windows.shards_at_once == 1
    steps = train_steps(len(images), 16, 0, 1, windows)
    assert sorted(np.concatenate(steps).tolist()) == list(range(NUM_IMAGES))
