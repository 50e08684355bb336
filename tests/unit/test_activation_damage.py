"""Shards and index entries that are not what was written: found, taken out of the index, computed anew."""

import hashlib
import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from activation_samples import KEY, flip_byte, image_ids, values_of

from tlray.activations.errors import DamagedShardError
from tlray.activations.shard import MAPS
from tlray.activations.store import ActivationStore

IDS = image_ids(40)
FOLDER = f"activations/{KEY.digest}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ActivationStore]:
    yield open_store(tmp_path)
    MAPS.drop()


def open_store(folder: Path) -> ActivationStore:
    return ActivationStore(str(folder / "activations"), cache=str(folder / "cache"))


def write(store: ActivationStore, ids: list[str]) -> bool:
    return store.write_shard(KEY, ids, values_of(ids), run="a")


def data_files(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER / "shards").glob("*"))


def assert_rows(read: tuple[torch.Tensor, ...], ids: list[str]) -> None:
    for tensor, expected in zip(read, values_of(ids), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize("offset", [0, 12, 200, -1])
def test_a_damaged_shard_is_taken_out_of_the_index_and_can_be_computed_anew(
    store: ActivationStore, tmp_path: Path, offset: int
) -> None:
    write(store, IDS[:20])
    (path,) = data_files(tmp_path)
    write(store, IDS[20:])
    flip_byte(path, offset)
    reader = store.reader(KEY, IDS)
    with pytest.raises(DamagedShardError, match=rf"{path} is damaged \(its checksum differs\); `tlray resume`"):
        reader.read(np.arange(40))
    assert store.missing(KEY, IDS) == IDS[:20]
    assert write(store, IDS[:20])
    assert_rows(store.reader(KEY, IDS).read(np.arange(40)), IDS)


@pytest.mark.parametrize("size", [0, 7, 100])
def test_a_shard_that_was_cut_short_is_damaged(store: ActivationStore, tmp_path: Path, size: int) -> None:
    write(store, IDS)
    os.truncate(data_files(tmp_path)[0], size)
    with pytest.raises(DamagedShardError):
        store.reader(KEY, IDS).read(np.arange(40))
    assert store.missing(KEY, IDS) == IDS


def test_a_shard_whose_data_is_gone_is_damaged(store: ActivationStore, tmp_path: Path) -> None:
    write(store, IDS)
    data_files(tmp_path)[0].unlink()
    with pytest.raises(DamagedShardError, match="it is gone"):
        store.reader(KEY, IDS).read(np.arange(40))
    assert store.missing(KEY, IDS) == IDS


def test_a_shard_that_was_computed_anew_in_the_meantime_stays(store: ActivationStore, tmp_path: Path) -> None:
    write(store, IDS)
    slow = store.reader(KEY, IDS)
    data_files(tmp_path)[0].unlink()
    with pytest.raises(DamagedShardError):
        store.reader(KEY, IDS).read(np.arange(40))
    assert write(store, IDS)
    with pytest.raises(DamagedShardError):
        slow.read(np.arange(40))
    assert not store.missing(KEY, IDS)


def _entry_with(data: bytes, **fields: Any) -> bytes:
    return json.dumps(json.loads(data) | fields).encode()


@pytest.mark.parametrize(
    "fields",
    [{"shapes": [[6], [18]]}, {"shapes": [[6]]}, {"shapes": [[6], [2, 3, 3000000]]}, {"shapes": [[6], [2, 3, 3], [1]]}],
)
def test_an_entry_that_disagrees_with_its_file_is_damaged_before_anything_is_mapped(
    store: ActivationStore, tmp_path: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, IDS)
    (entry,) = (tmp_path / FOLDER / "index").glob("*.json")
    entry.write_bytes(_entry_with(entry.read_bytes(), **fields))
    monkeypatch.setattr(mmap, "mmap", None)
    with pytest.raises(DamagedShardError):
        store.reader(KEY, IDS).read(np.arange(40))
    assert store.missing(KEY, IDS) == IDS


def test_an_entry_that_cannot_be_read_is_removed(store: ActivationStore, tmp_path: Path) -> None:
    write(store, IDS[:20])
    (entry,) = (tmp_path / FOLDER / "index").glob("*.json")
    write(store, IDS[20:])
    entry.write_bytes(entry.read_bytes()[:-10])
    assert store.missing(KEY, IDS) == IDS[:20]
    assert not entry.exists()
    assert write(store, IDS[:20])


def test_a_shard_of_other_shapes_than_most_is_removed(store: ActivationStore) -> None:
    write(store, IDS[:10])
    write(store, IDS[10:20])
    assert store.write_shard(KEY, IDS[20:], values_of(IDS[20:], shapes=[(7,)]), run="a")
    assert store.missing(KEY, IDS) == IDS[20:]
    assert not store.has_shard(KEY, IDS[20:])


def test_a_file_is_verified_once_by_a_process_and_again_when_it_changes(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: hashed.append(1) or digest(*args))
    write(store, IDS)
    for _ in range(3):
        reader = open_store(tmp_path).reader(KEY, IDS)
        assert_rows(reader.read(np.arange(40)), IDS)
        reader.close()
    assert len(hashed) == 1
    flip_byte(data_files(tmp_path)[0])
    with pytest.raises(DamagedShardError):
        open_store(tmp_path).reader(KEY, IDS).read(np.arange(40))
