"""Copies of shards on a node's disk. The store here is a local folder too: where it lies makes no difference."""

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from activation_samples import flip_byte, start_python

from tlray import storage
from tlray.activations import shard as shard_module
from tlray.activations.errors import ActivationError
from tlray.activations.index import Shard
from tlray.activations.local_cache import LocalCache
from tlray.activations.shard import MAPS, ShardMismatch
from tlray.errors import StorageError

SIZE = 1000

HOLD_A_COPY = """
import fcntl, sys
with open(sys.argv[1], "rb") as file:
    fcntl.flock(file, fcntl.LOCK_SH)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _nothing_open() -> Iterator[None]:
    yield
    MAPS.drop()


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is downloaded, as it is."""
    done: list[str] = []
    real = storage.download

    def counted(uri: str, path: Path) -> None:
        done.append(uri.rpartition("/")[2])
        time.sleep(0.05)  # so that others come while it lasts
        real(uri, path)

    monkeypatch.setattr(storage, "download", counted)
    return done


def make_shard(folder: Path, number: int) -> tuple[str, Shard]:
    """A file in the store, and what the index would say of it."""
    data = bytes([number]) * SIZE
    uri = str(folder / "store" / "0123" / "shards" / f"{number:032x}-{'0' * 16}.safetensors")
    storage.write_bytes(uri, data)
    return uri, Shard(
        id=f"{number:032x}",
        file=uri.rpartition("/")[2],
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=SIZE,
        rows=1,
        dtype="float16",
        shapes=((1,),),
        run="a",
    )


def kept(folder: Path) -> list[int]:
    return sorted(int(path.name.partition("-")[0], 16) for path in (folder / "cache" / "0123").iterdir())


def read(cache: LocalCache, uri: str, shard: Shard) -> bytes:
    with cache.open(uri, shard) as file:
        file.seek(0)
        return file.read()


def test_a_copy_is_downloaded_once(tmp_path: Path, downloads: list[str]) -> None:
    uri, shard = make_shard(tmp_path, 1)
    for _ in range(3):
        assert read(LocalCache(str(tmp_path / "cache"), None), uri, shard) == bytes([1]) * SIZE
    assert len(downloads) == 1
    assert kept(tmp_path) == [1]


def test_of_many_who_ask_at_once_one_downloads_and_the_others_wait(tmp_path: Path, downloads: list[str]) -> None:
    shards = [make_shard(tmp_path, number) for number in range(3)]
    together = threading.Barrier(12)

    def ask(number: int) -> bytes:
        together.wait()
        return read(LocalCache(str(tmp_path / "cache"), None), *shards[number % 3])

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12))) == [bytes([number % 3]) * SIZE for number in range(12)]
    assert sorted(downloads) == sorted(shard.file for _, shard in shards)


def test_a_damaged_copy_is_fetched_again(tmp_path: Path, downloads: list[str]) -> None:
    uri, shard = make_shard(tmp_path, 1)
    cache = LocalCache(str(tmp_path / "cache"), None)
    read(cache, uri, shard)
    flip_byte(cache.path(uri))
    assert read(cache, uri, shard) == bytes([1]) * SIZE
    os.truncate(cache.path(uri), 10)
    assert read(cache, uri, shard) == bytes([1]) * SIZE
    assert len(downloads) == 3


def test_a_damaged_original_is_not_kept(tmp_path: Path) -> None:
    uri, shard = make_shard(tmp_path, 1)
    flip_byte(Path(uri))
    with pytest.raises(ShardMismatch, match="checksum"):
        LocalCache(str(tmp_path / "cache"), None).open(uri, shard)
    assert kept(tmp_path) == []


def test_a_download_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, shard = make_shard(tmp_path, 1)
    cache = LocalCache(str(tmp_path / "cache"), None)

    def broken(uri: str, path: Path) -> None:
        path.write_bytes(b"half")
        raise StorageError(f"{uri}: the network is down")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "download", broken)
        with pytest.raises(StorageError, match="network"):
            cache.open(uri, shard)
    assert kept(tmp_path) == []
    assert read(cache, uri, shard) == bytes([1]) * SIZE


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    uri, shard = make_shard(tmp_path, 1)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ActivationError, match=rf"activations\.cache {tmp_path}/cache: Not a directory"):
        LocalCache(str(tmp_path / "cache"), None).open(uri, shard)


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    cache = LocalCache(str(tmp_path / "cache"), 3 * SIZE)
    shards = [make_shard(tmp_path, number) for number in range(5)]
    for uri, shard in shards[:3]:
        read(cache, uri, shard)
    read(cache, *shards[0])
    for number, expected in ((3, [0, 2, 3]), (4, [0, 3, 4])):
        read(cache, *shards[number])
        assert kept(tmp_path) == expected


def test_what_a_process_has_open_is_not_evicted(tmp_path: Path) -> None:
    cache = LocalCache(str(tmp_path / "cache"), 2 * SIZE)
    shards = [make_shard(tmp_path, number) for number in range(4)]
    read(cache, *shards[0])
    process = start_python(HOLD_A_COPY, cache.path(shards[0][0]))
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        read(cache, *shards[1])
        read(cache, *shards[2])
        assert kept(tmp_path) == [0, 2]
        with (
            cache.open(*shards[2]),
            pytest.raises(ActivationError, match=r"activations\.cache_max_gb: .* in use"),
        ):
            cache.open(*shards[3])
        process.kill()
    with cache.open(*shards[2]):
        read(cache, *shards[3])  # the lock of the killed process is gone
    assert kept(tmp_path) == [2, 3]


def test_what_the_process_itself_holds_mapped_gives_way_when_it_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_module, "_read_offsets", lambda descriptor, shard: [0])
    cache = LocalCache(str(tmp_path / "cache"), 2 * SIZE)
    for number in range(4):
        uri, shard = make_shard(tmp_path, number)

        def opened(uri: str = uri, shard: Shard = shard) -> shard_module.ShardMap:
            with cache.open(uri, shard) as file:
                return shard_module.map_shard(file, shard)

        MAPS.get(str(cache.path(uri)), opened)
        assert len(kept(tmp_path)) <= 2
    assert kept(tmp_path)[-1] == 3


def test_what_a_killed_download_left_is_removed_for_room(tmp_path: Path) -> None:
    cache = LocalCache(str(tmp_path / "cache"), 2 * SIZE)
    shards = [make_shard(tmp_path, number) for number in range(2)]
    left = cache.path(shards[0][0]).with_name(f"{'f' * 32}-{'0' * 16}.safetensors.{SIZE}.part")
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    read(cache, *shards[0])
    assert left.exists()
    read(cache, *shards[1])
    assert kept(tmp_path) == [0, 1]


def test_a_download_that_goes_on_counts_with_all_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = LocalCache(str(tmp_path / "cache"), SIZE)
    first, second = make_shard(tmp_path, 0), make_shard(tmp_path, 1)
    real = storage.download
    going_on, go_on = threading.Event(), threading.Event()

    def slow(uri: str, path: Path) -> None:
        if uri == first[0]:
            going_on.set()
            assert go_on.wait(30)
        real(uri, path)

    monkeypatch.setattr(storage, "download", slow)
    with ThreadPoolExecutor(1) as pool:
        downloading = pool.submit(read, cache, *first)
        assert going_on.wait(30)
        with pytest.raises(ActivationError, match="in use"):
            cache.open(*second)
        go_on.set()
        assert downloading.result() == bytes([0]) * SIZE
    assert read(cache, *second) == bytes([1]) * SIZE
    assert kept(tmp_path) == [1]
