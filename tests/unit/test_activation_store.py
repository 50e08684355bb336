"""Writing and reading activations on local disk; on S3, and with processes that die, in tests/integration."""

import errno
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from activation_samples import KEY, image_ids, sample_key, values_of

from tlray import storage
from tlray.activations.errors import ActivationError
from tlray.activations.shard import MAPS
from tlray.activations.store import ActivationStore
from tlray.errors import StorageError
from tlray.storage.stores import maps

IDS = image_ids(40)
FOLDER = f"activations/{KEY.digest}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ActivationStore]:
    yield open_store(tmp_path)
    MAPS.drop()


def open_store(folder: Path) -> ActivationStore:
    return ActivationStore(str(folder / "activations"), cache=str(folder / "cache"))


def write(store: ActivationStore, ids: list[str], run: str = "a") -> bool:
    return store.write_shard(KEY, ids, values_of(ids), run=run)


def data_files(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER / "shards").glob("*"))


def assert_rows(read: tuple[torch.Tensor, ...], ids: list[str], dtype: str = "float16") -> None:
    for tensor, expected in zip(read, values_of(ids, dtype=dtype), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_come_back_bit_for_bit_in_the_order_asked(store: ActivationStore, dtype: str) -> None:
    key = sample_key(dtype=dtype)
    for start in range(0, 40, 16):
        ids = IDS[start : start + 16]
        assert store.write_shard(key, ids, values_of(ids, dtype=dtype), run="a")
    asked = [IDS[position] for position in np.random.default_rng(0).permutation(40)]
    reader = store.reader(key, asked)
    assert (reader.shapes, reader.dtype, len(reader)) == (((6,), (2, 3, 3)), dtype, 40)
    for positions in (np.arange(40), np.array([5]), np.array([7, 3, 7, 39, 0]), np.arange(40)[::-1], np.array([], int)):
        read = reader.read(positions)
        assert [tensor.dtype for tensor in read] == [getattr(torch, dtype)] * 2
        if len(positions):
            assert_rows(read, [asked[position] for position in positions], dtype)
        else:
            assert [tuple(tensor.shape) for tensor in read] == [(0, 6), (0, 2, 3, 3)]


def test_what_is_read_is_a_copy_that_may_be_changed(store: ActivationStore) -> None:
    write(store, IDS)
    reader = store.reader(KEY, IDS)
    reader.read(np.arange(40))[0].zero_()
    assert_rows(reader.read(np.arange(40)), IDS)


def test_threads_may_share_a_reader(store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAPS, "max_maps", 3)
    monkeypatch.setattr(maps, "RELEASE_BYTES", 1000)
    for start in range(0, 40, 4):
        write(store, IDS[start : start + 4])
    reader = store.reader(KEY, IDS)

    def read(seed: int) -> None:
        for _ in range(20):
            positions = np.random.default_rng(seed).integers(0, 40, 8)
            assert_rows(reader.read(positions), [IDS[position] for position in positions])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))


def test_a_shard_is_a_safetensors_file_that_others_read(store: ActivationStore, tmp_path: Path) -> None:
    write(store, IDS)
    (path,) = data_files(tmp_path)
    loaded = safetensors.numpy.load_file(path)
    assert sorted(loaded) == ["0", "1"]
    for name, expected in zip("01", values_of(IDS), strict=True):
        np.testing.assert_array_equal(loaded[name], expected)


def test_the_folder_of_a_key_says_what_it_is(store: ActivationStore, tmp_path: Path) -> None:
    write(store, IDS[:3])
    write(store, IDS[3:])
    assert json.loads((tmp_path / FOLDER / "spec.json").read_text()) == KEY.spec()
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["index", "shards", "spec.json", "used.json"]
    for entry in store.index(KEY).entries:
        assert (tmp_path / FOLDER / "index" / f"{entry.id}.json").is_file()
        assert (tmp_path / FOLDER / "shards" / entry.file).stat().st_size == entry.bytes
        assert entry.run == "a"


def test_missing_images_are_named_in_the_order_given(store: ActivationStore) -> None:
    assert store.missing(KEY, IDS) == IDS
    write(store, IDS[10:20])
    asked = IDS[::-1]
    assert store.missing(KEY, asked) == [one for one in asked if one not in IDS[10:20]]
    assert store.missing(sample_key(view=1), asked) == asked
    with pytest.raises(ActivationError, match=r"30 of 40 images have no stored activations.*`tlray resume`"):
        store.reader(KEY, IDS)


def test_an_index_is_a_snapshot_and_the_next_one_knows_more(store: ActivationStore, tmp_path: Path) -> None:
    other = open_store(tmp_path)
    write(store, IDS[:4])
    before = store.index(KEY)
    write(other, IDS[4:8])
    assert len(before) == 4
    assert len(store.index(KEY)) == 8
    (tmp_path / FOLDER / "index" / f"{before.entries[0].id}.json").unlink()
    assert len(store.index(KEY)) == 4


def test_the_second_writer_of_a_shard_leaves_nothing_behind(store: ActivationStore, tmp_path: Path) -> None:
    assert not store.has_shard(KEY, IDS)
    assert write(store, IDS, run="first")
    assert store.has_shard(KEY, IDS[::-1])
    assert not store.has_shard(KEY, IDS[:-1])
    assert not write(open_store(tmp_path), IDS[::-1], run="second")
    assert len(data_files(tmp_path)) == 1
    assert [entry.run for entry in store.index(KEY).entries] == ["first"]
    assert_rows(store.reader(KEY, IDS).read(np.arange(40)), IDS)


def test_of_many_writers_at_once_one_is_first_and_the_others_remove_their_data(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(4)
    create = storage.create_exclusive

    def at_once(uri: str, data: bytes) -> bool:
        if "/index/" in uri:
            together.wait()  # all have written their data
        return create(uri, data)

    monkeypatch.setattr(storage, "create_exclusive", at_once)
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda run: write(open_store(tmp_path), IDS, run), "abcd"))
    assert won.count(True) == 1
    (entry,) = store.index(KEY).entries
    assert entry.run == "abcd"[won.index(True)]
    assert [path.name for path in data_files(tmp_path)] == [entry.file]


def test_shards_may_overlap(store: ActivationStore) -> None:
    assert write(store, IDS[:30])
    assert write(store, IDS[10:])
    reader = store.reader(KEY, IDS)
    assert_rows(reader.read(np.arange(40)), IDS)


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
def test_what_does_not_fit_float16_is_refused_with_the_remedy(
    store: ActivationStore, tmp_path: Path, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlray.activations.store.CHECKED_AT_ONCE", 20)
    values = values_of(IDS)
    values[1][33, 1, 2, 0] = wrong
    with pytest.raises(ActivationError, match=r"timm/test_resnet .*activations\.dtype=float32"):
        store.write_shard(KEY, IDS, values, run="a")
    assert not data_files(tmp_path)
    key, values32 = sample_key(dtype="float32"), [value.astype(np.float32) for value in values]
    with pytest.raises(ActivationError, match="infinite or not a number"):
        store.write_shard(key, IDS, values32, run="a")


def test_a_failed_write_makes_nothing_visible(store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StorageError, match="No space left"):
            write(store, IDS)
    assert store.missing(KEY, IDS) == IDS
    assert write(store, IDS)


def test_what_others_leave_in_the_folders_is_ignored(store: ActivationStore, tmp_path: Path) -> None:
    write(store, IDS)
    for name in (".probe", "README", f"{KEY.digest}/index/.4be1.json.0a1b", f"{KEY.digest}/index/notes.json"):
        storage.write_text(str(tmp_path / "activations" / name), "something")
    assert len(store.index(KEY)) == 40
    assert set(store.usage()) == {KEY.digest}


def test_only_so_many_shards_are_open_at_once(store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAPS, "max_maps", 5)
    for one in IDS:
        write(store, [one])
    reader = store.reader(KEY, IDS)

    def num_open() -> int:
        return Path("/proc/self/maps").read_text().count(f"{KEY.digest}/shards")

    for positions in np.random.default_rng(0).permutation(40).reshape(8, 5):
        reader.read(positions)
        assert num_open() <= 5
    assert_rows(reader.read(np.arange(40)), IDS)
    assert 0 < num_open() <= 5
    reader.close()
    assert num_open() == 0
    with pytest.raises(AssertionError, match="closed"):
        reader.read(np.arange(1))
