"""Damage, the copies on a node and their limit, eviction and leases, and writers that die. No server takes part."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from activation_samples import flip_byte, run_python, start_python
from shard_samples import add_images, assert_all_read, image_bytes, keep_bucket_in, number_of

from tlray import storage
from tlray.data.shards import DamagedImageShardError, ImageShardError, ImageShards, collection_uri
from tlray.errors import StorageError
from tlray.storage.stores import eviction

REMOTE = "s3://photos/shards"

# Opens a shard, says so, and keeps what it read until its input ends.
HOLDER = """
import sys
from tlray import storage
from tlray.data.shards import ImageShards
storage.download = None  # the copy is there
image = ImageShards(sys.argv[1], sys.argv[2]).read(sys.argv[3], 0)
print("held", flush=True)
sys.stdin.read()
"""

# Writes shards without end, of images from the given number on.
WRITER = """
import sys
from itertools import count
from shard_samples import add_images
from tlray.data.shards import ImageShards
with ImageShards(sys.argv[1], "").writer(shard_bytes=20_000) as writer:
    for start in count(int(sys.argv[2]), step=10):
        add_images(writer, range(start, start + 10))
        print(start, flush=True)
"""

# Kills itself before or after the n-th file that it writes.
KILLED_WRITER = """
import os, signal, sys
from shard_samples import add_images
from tlray import storage
from tlray.data.shards import ImageShards
number, when, real, calls = int(sys.argv[2]), sys.argv[3], storage.write_bytes, []
def write_bytes(*arguments):
    calls.append(arguments)
    if len(calls) == number and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    real(*arguments)
    if len(calls) == number and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
storage.write_bytes = write_bytes
with ImageShards(sys.argv[1], "").writer(shard_bytes=3000) as writer:
    add_images(writer, range(60))
"""

# Reads an image and prints how many files were hashed for it.
COUNT_HASHED = """
import hashlib, sys
from tlray.data.shards import ImageShards
hashed, real = [], hashlib.file_digest
hashlib.file_digest = lambda *arguments: hashed.append(1) or real(*arguments)
ImageShards(sys.argv[1], sys.argv[2]).read(sys.argv[3], 0)
print(len(hashed))
"""


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageShards:
    keep_bucket_in(tmp_path / "bucket", monkeypatch)
    return ImageShards(REMOTE, str(tmp_path / "cache"))


@pytest.fixture
def downloads(remote: ImageShards, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are downloaded, as they are."""
    done: list[str] = []
    real = storage.download

    def counted(uri: str, path: Path) -> None:
        done.append(uri.rpartition("/")[2].removesuffix(".arrow"))
        time.sleep(0.02)  # so that others come while it lasts
        real(uri, path)

    monkeypatch.setattr(storage, "download", counted)
    return done


def write(store: ImageShards, numbers: range, shard_bytes: int = 3000) -> list[str]:
    with store.writer(shard_bytes=shard_bytes) as writer:
        add_images(writer, numbers)
    return writer.names


def original(tmp_path: Path, name: str) -> Path:
    return tmp_path / "bucket" / "photos" / "shards" / "shards" / f"{name}.arrow"


def copy_of(tmp_path: Path, name: str) -> Path:
    return tmp_path / "cache" / name[:2] / f"{name}.arrow"


def copies(tmp_path: Path) -> set[str]:
    return {path.stem for path in (tmp_path / "cache").glob("*/*.arrow")}


def test_a_remote_shard_is_copied_once_and_read_from_the_copy(
    remote: ImageShards, tmp_path: Path, downloads: list[str]
) -> None:
    names = write(remote, range(60))
    for store in (remote, remote, ImageShards(REMOTE, str(tmp_path / "cache"))):
        assert_all_read(store, range(60))
    assert sorted(downloads) == sorted(names)
    assert copies(tmp_path) == set(names)


def test_of_many_threads_that_want_a_shard_one_downloads_it(remote: ImageShards, downloads: list[str]) -> None:
    names = write(remote, range(30))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(remote.fetch, names * 8))
    assert sorted(downloads) == sorted(names)


@pytest.mark.parametrize("offset", [0, 20, 1500, -1])
def test_a_flipped_byte_is_found_when_the_shard_is_fetched_and_the_shard_is_named(
    remote: ImageShards, tmp_path: Path, offset: int
) -> None:
    names = write(remote, range(30))
    flip_byte(original(tmp_path, names[1]), offset)
    with pytest.raises(DamagedImageShardError, match=rf"shards/{names[1]}\.arrow is damaged \(its checksum differs\)"):
        remote.read(names[1], 0)
    assert copies(tmp_path) == set()
    left = remote.index()
    assert names[1] not in left["shard"].to_pylist()
    assert_all_read(remote, [number_of(uri) for uri in left["uri"].to_pylist()])
    write(remote, range(30))
    assert_all_read(remote, range(30))


def test_a_shard_that_is_gone_is_taken_out_of_the_index(remote: ImageShards, tmp_path: Path) -> None:
    (name,) = write(remote, range(3), shard_bytes=10**6)
    original(tmp_path, name).unlink()
    with pytest.raises(DamagedImageShardError, match=rf"{name}\.arrow is damaged \(it is gone\)"):
        remote.read(name, 0)
    assert len(remote.index()) == 0


def test_a_server_that_does_not_answer_takes_nothing_out_of_the_index(
    remote: ImageShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = write(remote, range(3), shard_bytes=10**6)

    def broken(uri: str, path: Path) -> None:
        path.write_bytes(b"half")
        raise StorageError(f"{uri}: the network is down")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "download", broken)
        with pytest.raises(StorageError, match="the network is down"):
            remote.read(name, 0)
    assert_all_read(remote, range(3))


def test_a_damaged_copy_is_fetched_again(remote: ImageShards, tmp_path: Path, downloads: list[str]) -> None:
    (name,) = write(remote, range(3), shard_bytes=10**6)
    for damage in (flip_byte, lambda path: os.truncate(path, 10), Path.unlink):
        assert remote.read(name, 1) == image_bytes(1)
        remote.close()
        damage(copy_of(tmp_path, name))
    assert remote.read(name, 1) == image_bytes(1)
    assert len(downloads) == 4


def test_a_damaged_shard_of_a_local_store_is_found_too(tmp_path: Path) -> None:
    store = ImageShards(str(tmp_path / "store"), str(tmp_path / "cache"))
    (name,) = write(store, range(3), shard_bytes=10**6)
    flip_byte(tmp_path / "store" / "shards" / f"{name}.arrow", 700)
    with pytest.raises(DamagedImageShardError, match=rf"{tmp_path}/store/shards/{name}\.arrow is damaged"):
        store.read(name, 0)


def test_a_shard_is_hashed_once_for_all_processes_of_a_node_and_again_when_it_changes(tmp_path: Path) -> None:
    uri, cache = str(tmp_path / "store"), str(tmp_path / "cache")
    (name,) = write(ImageShards(uri, cache), range(3), shard_bytes=10**6)
    assert [run_python(COUNT_HASHED, uri, cache, name) for _ in range(2)] == ["1\n", "0\n"]
    os.utime(tmp_path / "store" / "shards" / f"{name}.arrow")
    assert [run_python(COUNT_HASHED, uri, cache, name) for _ in range(2)] == ["1\n", "0\n"]


def test_what_was_found_sound_before_the_node_started_anew_is_forgotten(tmp_path: Path) -> None:
    uri, cache = str(tmp_path / "store"), str(tmp_path / "cache")
    (name,) = write(ImageShards(uri, cache), range(3), shard_bytes=10**6)
    run_python(COUNT_HASHED, uri, cache, name)
    (of_this_boot,) = (tmp_path / "cache" / ".sound").iterdir()
    of_this_boot.rename(of_this_boot.with_name("earlier"))
    assert run_python(COUNT_HASHED, uri, cache, name) == "1\n"
    assert [path.name for path in (tmp_path / "cache" / ".sound").iterdir()] == [of_this_boot.name]


def test_the_copies_stay_below_their_limit_and_those_used_last_stay(remote: ImageShards, tmp_path: Path) -> None:
    names = write(remote, range(60))
    largest = max(original(tmp_path, name).stat().st_size for name in names)
    store = ImageShards(REMOTE, str(tmp_path / "cache"), cache_max_bytes=4 * largest)
    for name in names:
        store.read(name, 0)
        assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*.arrow")) <= 4 * largest
        store.fetch(names[0])
        store.close()
    assert {names[0], names[-1]} <= copies(tmp_path)
    assert_all_read(store, range(60))


def test_a_copy_that_another_process_reads_is_not_evicted(remote: ImageShards, tmp_path: Path) -> None:
    names = write(remote, range(60))
    largest = max(original(tmp_path, name).stat().st_size for name in names)
    store = ImageShards(REMOTE, str(tmp_path / "cache"), cache_max_bytes=2 * largest)
    store.read(names[0], 0)
    with start_python(HOLDER, REMOTE, tmp_path / "cache", names[0]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        store.close()
        for name in names[1:]:
            store.read(name, 0)
            assert names[0] in copies(tmp_path)
        image = store.read(names[-1], 0)  # keeps the rest of the room
        with pytest.raises(ImageShardError, match=r"data\.cache_max_gb: .* prepared shards in .* in use; allow more"):
            store.read(names[1], 0)
        process.kill()
    assert image
    store.read(names[1], 0)
    assert copies(tmp_path) == {names[1], names[-1]}


def test_a_cache_folder_that_cannot_be_written_is_named(remote: ImageShards, tmp_path: Path) -> None:
    (name,) = write(remote, range(3), shard_bytes=10**6)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ImageShardError, match=rf"data\.cache {tmp_path}/cache: Not a directory"):
        remote.read(name, 0)


def test_eviction_removes_whole_stores_but_never_one_with_a_live_lease(tmp_path: Path) -> None:
    root = str(tmp_path / "stores")
    stores = [ImageShards(collection_uri(root, {"data": number}), str(tmp_path / "cache")) for number in range(3)]
    for number, store in enumerate(stores):
        write(store, range(10 * number, 10 * number + 10))
        store.touch()
    with stores[0].lease("run-7"):
        assert not eviction.make_room(root, 1, max_bytes=1, keep=())
        assert [len(store.index()) for store in stores] == [10, 0, 0]
        assert_all_read(stores[0], range(10))
    assert eviction.make_room(root, 1, max_bytes=1, keep=())
    assert list(storage.list_files(root)) == []


def test_the_store_used_last_is_evicted_last(tmp_path: Path) -> None:
    root = str(tmp_path / "stores")
    stores = [ImageShards(collection_uri(root, {"data": number}), str(tmp_path / "cache")) for number in range(3)]
    for number, store in enumerate(stores):
        write(store, range(10 * number, 10 * number + 10))
    for store in (stores[1], stores[0], stores[2]):
        store.touch()
    total = sum(file.size for file in storage.list_files(root))
    assert eviction.make_room(root, 1, max_bytes=total, keep=())
    assert [len(store.index()) for store in stores] == [10, 0, 10]


def test_what_a_killed_writer_left_is_swept_when_it_is_a_day_old(tmp_path: Path) -> None:
    root = str(tmp_path / "stores")
    store = ImageShards(collection_uri(root, {}), str(tmp_path / "cache"))
    names = write(store, range(30))
    entry = Path(store.uri, "index", f"{names[0]}.parquet")
    entry.unlink()
    assert eviction.make_room(root, 0, max_bytes=None, keep=())
    assert len(list(Path(store.uri, "shards").iterdir())) == len(names)
    for path in Path(store.uri, "shards").iterdir():
        os.utime(path, (0, 0))
    assert eviction.make_room(root, 0, max_bytes=None, keep=())
    assert {path.stem for path in Path(store.uri, "shards").iterdir()} == set(names[1:])


POINTS = [
    (1, "before", 0, 0),  # nothing written
    (1, "after", 0, 1),  # the data, but not the entry
    (2, "before", 0, 1),
    (2, "after", 1, 1),  # the entry
    (3, "after", 1, 2),  # the data of the next
]


@pytest.mark.parametrize(("number", "when", "num_visible", "num_files"), POINTS)
def test_a_writer_killed_between_two_files_leaves_at_most_data_that_nobody_sees(
    tmp_path: Path, number: int, when: str, num_visible: int, num_files: int
) -> None:
    writer = start_python(KILLED_WRITER, tmp_path / "store", number, when)
    _, errors = writer.communicate()
    assert writer.returncode == -signal.SIGKILL, errors
    store = ImageShards(str(tmp_path / "store"), str(tmp_path / "cache"))
    found = [number_of(uri) for uri in store.index()["uri"].to_pylist()]
    assert len(set(store.index()["shard"].to_pylist())) == num_visible
    assert len(list((tmp_path / "store").glob("shards/*.arrow"))) == num_files
    assert_all_read(store, found)
    write(store, range(60))
    assert_all_read(store, range(60))


def test_kills_at_any_moment_leave_only_whole_shards(tmp_path: Path) -> None:
    store = ImageShards(str(tmp_path / "store"), str(tmp_path / "cache"))
    seen: set[str] = set()
    for kill in range(4):
        with start_python(WRITER, tmp_path / "store", 100_000 * kill) as writer:
            assert writer.stdout is not None
            for _ in range(20 + 7 * kill):
                writer.stdout.readline()
            writer.kill()
        table = store.index()
        assert seen < set(table["shard"].to_pylist())  # what was there stays, and there is more
        seen = set(table["shard"].to_pylist())
        assert_all_read(store, [number_of(uri) for uri in table["uri"].to_pylist()])
