"""Batches: every image once, the same order for everybody, no thread left behind."""

import hashlib
import io
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_splits import split_folders
from PIL import Image

from tlray import storage
from tlray.catalogue import Preprocessing
from tlray.config import DataConfig
from tlray.data.batch import Batch, Streams
from tlray.data.cache import PROCESS_CACHE, ImageCache
from tlray.data.loader import make_streams
from tlray.data.manifest import Manifest, make_manifest
from tlray.data.parallel import ordered_map
from tlray.data.transforms import eval_transform
from tlray.errors import DataError

SMALL = Preprocessing(
    input_size=(32, 32), resize=36, crop_mode="center", interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3
)
LARGE = replace(SMALL, input_size=(48, 48), resize=48)  # larger than the 40 pixels of the images


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    PROCESS_CACHE.resize(0)
    yield
    PROCESS_CACHE.resize(0)


@pytest.fixture(scope="module")
def manifest(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folders = split_folders(image_folder, tmp_path_factory.mktemp("splits"), val=2, test=2)
    return make_manifest(DataConfig(**folders))


def streams_of(manifest: Manifest, preprocessing: Preprocessing = SMALL, **arguments: Any) -> Streams:
    defaults: dict[str, Any] = {
        "batch_size": 5,
        "augmentation": "standard",
        "seed": 0,
        "num_threads": 2,
        "memory_cache_mb": 0,
    }
    return make_streams(manifest, preprocessing, **{**defaults, **arguments})


def by_row(batches: Iterator[Batch]) -> dict[int, torch.Tensor]:
    return {int(row): image for batch in batches for row, image in zip(batch.rows, batch.inputs[0], strict=True)}


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tlray-images")]


@pytest.fixture
def num_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file is read from now on."""
    counts: Counter[str] = Counter()
    read, lock = storage.read_bytes, threading.Lock()

    def counting(uri: str, version: str | None = None) -> bytes:
        with lock:
            counts[uri] += 1
        return read(uri, version)

    monkeypatch.setattr(storage, "read_bytes", counting)
    return counts


def test_a_batch_has_the_stated_shapes_and_types(manifest: Manifest) -> None:
    batch = next(streams_of(manifest).train(1))
    assert batch.inputs[0].shape == (5, 3, 32, 32)
    assert batch.inputs[0].dtype == torch.uint8
    assert batch.labels.shape == batch.rows.shape == (5,)
    assert batch.labels.dtype == batch.rows.dtype == torch.int64
    assert batch.num_global == 5


def test_an_epoch_is_a_permutation_in_batches_of_nearly_equal_size(manifest: Manifest) -> None:
    streams = streams_of(manifest, batch_size=7)
    assert streams.num_train == 24
    batches = list(streams.train(1))
    assert [len(batch.rows) for batch in batches] == [6, 6, 6, 6]  # not 7, 7, 7, 3
    assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(24))
    labels = [image.label for image in manifest.split("train")]
    assert all(labels[row] == label for b in batches for row, label in zip(b.rows, b.labels.tolist(), strict=True))


def test_the_order_depends_on_seed_and_epoch_alone(manifest: Manifest) -> None:
    def order(epoch: int, **arguments: Any) -> list[int]:
        return torch.cat([batch.rows for batch in streams_of(manifest, **arguments).train(epoch)]).tolist()

    assert order(1) == order(1, num_threads=5, augmentation="none", batch_size=9)
    assert order(1) != order(2)
    assert order(1) != order(1, seed=1)


@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_share_each_global_batch_without_overlap(world_size: int, manifest: Manifest) -> None:
    alone = list(streams_of(manifest, batch_size=7).train(3))
    shares = [
        list(streams_of(manifest, batch_size=7, rank=rank, world_size=world_size).train(3))
        for rank in range(world_size)
    ]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert [part.num_global for part in parts] == [len(batch.rows)] * world_size
        for rank, part in enumerate(parts):
            assert torch.equal(part.rows, batch.rows[rank::world_size])
            assert torch.equal(part.inputs[0], batch.inputs[0][rank::world_size])
            assert torch.equal(part.labels, batch.labels[rank::world_size])


def test_more_workers_than_images_get_empty_batches_and_equally_many(manifest: Manifest) -> None:
    few = replace(manifest, images=manifest.split("train")[:3])
    shares = [list(streams_of(few, batch_size=8, rank=rank, world_size=4).train(1)) for rank in range(4)]
    assert [[len(batch.rows) for batch in share] for share in shares] == [[1], [1], [1], [0]]
    assert shares[3][0].inputs[0].shape == (0, 3, 32, 32)


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_evaluation_sees_every_image_once_in_order_over_all_workers(
    batch_size: int, world_size: int, split: str, manifest: Manifest
) -> None:
    num_images = len(manifest.split(split))  # type: ignore[arg-type]
    rows, global_sizes = [], []
    for rank in range(world_size):
        streams = streams_of(manifest, batch_size=batch_size, rank=rank, world_size=world_size)
        batches = list(getattr(streams, split)())
        assert torch.cat([batch.rows for batch in batches]).tolist() == list(range(rank, num_images, world_size))
        assert all(len(batch.rows) <= batch_size for batch in batches)
        rows += [row for batch in batches for row in batch.rows.tolist()]
        global_sizes.append([batch.num_global for batch in batches])
    assert sorted(rows) == list(range(num_images))
    assert sum(max(global_sizes, key=len)) == num_images


def test_evaluation_images_are_decoded_and_transformed_as_pillow_and_the_transform_say(manifest: Manifest) -> None:
    images = by_row(streams_of(manifest).val())
    for row, image in enumerate(manifest.split("val")):
        pixels = np.array(Image.open(image.uri).convert("RGB"))
        assert torch.equal(images[row], eval_transform(torch.from_numpy(pixels).permute(2, 0, 1), SMALL))


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_batch_that_threads_fill_in_parts_has_each_image_in_its_place(num_threads: int, manifest: Manifest) -> None:
    images = manifest.split("train")
    for batch in streams_of(manifest, batch_size=len(images), augmentation="none", num_threads=num_threads).train(0):
        for row, label, pixels in zip(batch.rows, batch.labels, batch.inputs[0], strict=True):
            whole = np.array(Image.open(images[int(row)].uri).convert("RGB"))
            assert torch.equal(pixels, eval_transform(torch.from_numpy(whole).permute(2, 0, 1), SMALL))
            assert label == images[int(row)].label


@pytest.mark.parametrize("augmentation", ["light", "standard"])
def test_augmentation_depends_on_seed_epoch_and_content_not_on_threads_workers_or_cache(
    augmentation: str, manifest: Manifest
) -> None:
    reference = by_row(streams_of(manifest, augmentation=augmentation, num_threads=1).train(2))
    for arguments in ({"num_threads": 7}, {"batch_size": 24}, {"memory_cache_mb": 8}, {"memory_cache_mb": 8}):
        images = by_row(streams_of(manifest, augmentation=augmentation, **arguments).train(2))
        assert all(torch.equal(images[row], image) for row, image in reference.items())
    for arguments in ({"seed": 1, "epoch": 2}, {"seed": 0, "epoch": 3}):
        epoch = arguments.pop("epoch")
        images = by_row(streams_of(manifest, augmentation=augmentation, **arguments).train(epoch))
        assert not any(torch.equal(images[row], image) for row, image in reference.items())


def test_with_a_cache_files_are_read_once_by_all_streams_of_the_process(
    manifest: Manifest, num_reads: Counter[str]
) -> None:
    for augmentation in ("standard", "light"):
        streams = streams_of(manifest, memory_cache_mb=8, augmentation=augmentation)
        for epoch in (1, 2):
            assert len(by_row(streams.train(epoch))) == 24
            assert len(by_row(streams.val())) == 6
    assert set(num_reads.values()) == {1}


def test_without_a_cache_files_are_read_every_time(manifest: Manifest, num_reads: Counter[str]) -> None:
    streams = streams_of(manifest)
    for _ in range(2):
        by_row(streams.val())
    assert set(num_reads.values()) == {2}


@pytest.mark.parametrize(("preprocessing", "bytes_each"), [(SMALL, 3 * 32 * 32), (LARGE, 3 * 40 * 40)])
def test_of_the_image_and_the_input_made_of_it_the_smaller_is_kept(
    preprocessing: Preprocessing, bytes_each: int, manifest: Manifest, num_reads: Counter[str]
) -> None:
    for _ in range(2):
        by_row(streams_of(manifest, preprocessing, memory_cache_mb=8).val())
    assert PROCESS_CACHE.num_bytes == 6 * bytes_each
    assert set(num_reads.values()) == {1}


def test_cached_inputs_of_one_preprocessing_are_not_another_ones(manifest: Manifest) -> None:
    by_row(streams_of(manifest, memory_cache_mb=8).val())
    squashed = replace(SMALL, crop_mode="squash", resize=32)
    with_cache = by_row(streams_of(manifest, squashed, memory_cache_mb=8).val())
    without = by_row(streams_of(manifest, squashed).val())
    assert all(torch.equal(with_cache[row], without[row]) for row in without)


def test_the_cache_keeps_what_was_used_last_and_stays_within_its_limit() -> None:
    cache = ImageCache(max_bytes=300)
    for key in "abc":
        cache.put(key, torch.zeros(100, dtype=torch.uint8))
    assert cache.get("a") is not None
    cache.put("d", torch.zeros(100, dtype=torch.uint8))
    assert [cache.get(key) is not None for key in "abcd"] == [True, False, True, True]
    cache.put("huge", torch.zeros(301, dtype=torch.uint8))
    assert cache.get("huge") is None
    assert cache.num_bytes == 300
    cache.resize(100)
    assert [cache.get(key) is not None for key in "abcd"] == [False, False, False, True]
    cache.resize(0)
    assert cache.num_bytes == 0


def test_an_image_that_is_gone_or_changed_is_named(manifest: Manifest, tmp_path: Path) -> None:
    image = manifest.split("val")[0]
    gone = replace(manifest, images=(replace(image, uri=str(tmp_path / "gone.jpg")),))
    with pytest.raises(DataError, match=r"gone\.jpg is gone since the run's manifest was made"):
        list(streams_of(gone).val())
    other = io.BytesIO()
    Image.new("RGB", (8, 8)).save(other, "JPEG")
    (tmp_path / "changed.jpg").write_bytes(other.getvalue())
    changed = replace(manifest, images=(replace(image, uri=str(tmp_path / "changed.jpg")),))
    with pytest.raises(DataError, match=r"changed\.jpg has changed since"):
        list(streams_of(changed).val())
    assert not loader_threads()


def test_closing_a_stream_early_ends_its_threads(manifest: Manifest) -> None:
    batches = streams_of(manifest, num_threads=4).train(1)
    next(batches)
    assert loader_threads()
    batches.close()  # type: ignore[attr-defined]
    assert not loader_threads()


def test_an_abandoned_stream_ends_its_threads(manifest: Manifest) -> None:
    for batch in streams_of(manifest, num_threads=4).train(1):
        assert batch.num_global
        break
    assert not loader_threads()


def test_a_finished_stream_leaves_no_threads(manifest: Manifest) -> None:
    list(streams_of(manifest).train(1))
    assert not loader_threads()


def test_a_map_over_threads_keeps_order_and_runs_only_so_far_ahead() -> None:
    started = []

    def work(item: int) -> str:
        started.append(item)
        time.sleep(0.001 * (item % 3))
        return hashlib.md5(str(item).encode()).hexdigest()

    results = ordered_map(work, range(50), num_threads=4, ahead=6)
    first = [next(results) for _ in range(10)]
    assert len(started) <= 10 + 6
    assert first + list(results) == [hashlib.md5(str(item).encode()).hexdigest() for item in range(50)]


def test_a_map_over_threads_raises_where_the_failing_item_stands() -> None:
    results = ordered_map(lambda item: 1 // item, [1, 1, 0, 1], num_threads=2, ahead=4)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not loader_threads()
