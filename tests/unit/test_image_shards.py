"""Writing, listing and reading prepared shards on local disk; damage in test_image_shards_damage.py."""

import ctypes
import gc
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from activation_samples import run_python
from shard_samples import add_images, assert_all_read, image_bytes, number_of, row_of

from tlray import storage
from tlray.data.decode import BadImageError
from tlray.data.shards import ImageShardError, ImageShards, collection_uri, index
from tlray.errors import StorageError
from tlray.storage.stores import maps


@pytest.fixture
def store(tmp_path: Path) -> ImageShards:
    return open_store(tmp_path)


def open_store(folder: Path) -> ImageShards:
    return ImageShards(str(folder / "store"), str(folder / "cache"))


def write(store: ImageShards, numbers: range, shard_bytes: int = 3000) -> list[str]:
    with store.writer(shard_bytes=shard_bytes) as writer:
        add_images(writer, numbers)
    return writer.names


def files(folder: Path, part: str) -> list[Path]:
    return sorted((folder / "store" / part).glob("*"))


def num_mapped(folder: Path) -> int:
    return Path("/proc/self/maps").read_text().count(f"{folder}/store/shards")


def test_images_come_back_byte_for_byte(store: ImageShards, tmp_path: Path) -> None:
    names = write(store, range(60))
    assert len(names) > 5
    assert_all_read(store, range(60))
    assert_all_read(open_store(tmp_path), range(60))


def test_the_index_holds_what_was_known_of_each_image(store: ImageShards) -> None:
    write(store, range(20))
    table = store.index()
    assert table.schema.names == [
        *("uri", "version", "content_id", "num_bytes", "width", "height", "status", "shard", "row")
    ]
    for found in table.to_pylist():
        expected = row_of(number_of(found["uri"]))
        assert all(found[name] == getattr(expected, name) for name in table.schema.names[:-2])
    by_shard = table.group_by("shard", use_threads=False).aggregate([("row", "list")])
    assert all(rows == list(range(len(rows))) for rows in by_shard["row_list"].to_pylist())


def test_an_empty_store_has_an_empty_index_of_the_same_columns(store: ImageShards) -> None:
    empty = store.index()
    with store.writer():
        pass
    assert len(store.index()) == 0
    write(store, range(3))
    assert store.index().schema == empty.schema


def test_a_bad_image_keeps_its_row_and_none_of_its_bytes(store: ImageShards) -> None:
    with store.writer() as writer:
        writer.add(row_of(0), image_bytes(0))
        writer.add(row_of(1, status="a web page, not an image", width=0, height=0), b"<html>")
        writer.add(row_of(2), image_bytes(2))
    (name,) = writer.names
    assert store.index()["status"].to_pylist() == ["ok", "a web page, not an image", "ok"]
    assert [bytes(store.read(name, row)) for row in range(3)] == [image_bytes(0), b"", image_bytes(2)]


def test_a_shard_of_bad_images_alone_can_be_read(store: ImageShards) -> None:
    with store.writer() as writer:
        writer.add(row_of(0, status="the file is empty"), b"")
    assert store.read(writer.names[0], 0) == b""


def test_a_shard_is_an_arrow_file_that_others_read(store: ImageShards, tmp_path: Path) -> None:
    (name,) = write(store, range(5), shard_bytes=10**6)
    (path,) = files(tmp_path, "shards")
    (entry,) = files(tmp_path, "index")
    assert (path.name, entry.name) == (f"{name}.arrow", f"{name}.parquet")
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        assert table["image"].to_pylist() == [image_bytes(number) for number in range(5)]
        assert table.drop_columns("image").equals(pq.read_table(entry))


def test_no_row_past_the_end_is_read(store: ImageShards) -> None:
    (name,) = write(store, range(5), shard_bytes=10**6)
    for row in (-1, 5):
        with pytest.raises(IndexError):
            store.read(name, row)


@pytest.mark.parametrize("name", ["", "../../../etc/passwd", f"{'0' * 64}-12/..", f"{'0' * 63}-5", f"{'0' * 64}-0"])
def test_what_is_no_name_of_a_shard_is_never_looked_for(store: ImageShards, name: str) -> None:
    with pytest.raises(ImageShardError, match="is not the name of a prepared shard"):
        store.read(name, 0)


def test_what_is_read_is_the_memory_of_the_map_itself(store: ImageShards, tmp_path: Path) -> None:
    (name,) = write(store, range(5), shard_bytes=10**6)
    image = store.read(name, 3)
    assert image.readonly
    address = np.frombuffer(image, np.uint8).ctypes.data
    ranges = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if f"{tmp_path}/store/shards" in line
    ]
    assert any(start <= address and address + len(image) <= end for start, end in ranges)
    assert ctypes.string_at(address, len(image)) == image_bytes(3)


def test_what_was_read_outlives_the_closing_of_its_shard(store: ImageShards, tmp_path: Path) -> None:
    names = write(store, range(30))
    image = store.read(names[0], 0)
    store.close()
    gc.collect()
    assert num_mapped(tmp_path) == 1
    assert image == image_bytes(0)
    del image
    assert num_mapped(tmp_path) == 0
    assert_all_read(store, range(30))


def test_only_so_many_shards_are_open_at_once(store: ImageShards, tmp_path: Path) -> None:
    write(store, range(100), shard_bytes=1)
    store._maps.max_maps = 7
    for _ in range(2):
        assert_all_read(store, range(100))
        assert num_mapped(tmp_path) == 7
    store.close()
    assert num_mapped(tmp_path) == 0


def test_a_small_cache_keeps_few_shards_open(tmp_path: Path) -> None:
    def max_maps(cache_max_bytes: int | None) -> int:
        return ImageShards(str(tmp_path), "", cache_max_bytes)._maps.max_maps

    assert (max_maps(None), max_maps(10**13), max_maps(10**10), max_maps(10**6)) == (256, 256, 39, 1)


def test_threads_may_share_a_store(store: ImageShards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "RELEASE_BYTES", 5000)  # so that pages are given back while others read
    write(store, range(200))
    store._maps.max_maps = 5
    rows = store.index().to_pylist()
    together = threading.Barrier(8)

    def read(seed: int) -> None:
        together.wait()
        for position in np.random.default_rng(seed).integers(0, len(rows), 400):
            row = rows[position]
            assert store.read(row["shard"], row["row"]) == image_bytes(number_of(row["uri"]))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))


def test_threads_may_share_a_writer(store: ImageShards) -> None:
    together = threading.Barrier(8)

    def add(first: int) -> None:
        together.wait()
        add_images(writer, range(first, first + 50))

    with store.writer(shard_bytes=2000) as writer, ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(0, 400, 50)))
    assert len(set(writer.names)) == len(writer.names)
    assert_all_read(store, range(400))


def test_two_writers_at_once_keep_each_image_once_in_the_index(store: ImageShards, tmp_path: Path) -> None:
    other = open_store(tmp_path)
    with store.writer(shard_bytes=3000) as first, other.writer(shard_bytes=3000) as second:
        for number in range(60):
            first.add(row_of(number), image_bytes(number))
            second.add(row_of(number + 30), image_bytes(number + 30))
    assert len(files(tmp_path, "index")) == len(first.names) + len(second.names)
    assert_all_read(store, range(90))
    assert store.index().equals(open_store(tmp_path).index())


def test_an_image_that_has_changed_is_listed_with_both_versions(store: ImageShards) -> None:
    write(store, range(2))
    with store.writer() as writer:
        writer.add(row_of(1, version="newer"), image_bytes(1))
    listed = zip(store.index()["uri"].to_pylist(), store.index()["version"].to_pylist(), strict=True)
    assert sorted((number_of(uri), version) for uri, version in listed) == [(0, "v0"), (1, "newer"), (1, "v1")]


def test_writers_of_the_same_images_write_files_of_their_own(store: ImageShards, tmp_path: Path) -> None:
    names = write(store, range(3)) + write(store, range(3))
    assert len(set(names)) == len(files(tmp_path, "shards")) == 2


def test_an_index_of_200_shards_takes_one_listing_and_later_only_what_is_new(
    store: ImageShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, range(200), shard_bytes=1)
    listed, read, at_once = [], [], []
    real_list, real_read, real_for_each = storage.list_files, storage.read_bytes, index.for_each
    monkeypatch.setattr(storage, "list_files", lambda uri: listed.append(uri) or real_list(uri))
    monkeypatch.setattr(storage, "read_bytes", lambda uri: read.append(uri) or real_read(uri))
    monkeypatch.setattr(
        index, "for_each", lambda *args, **options: at_once.append(len(args[1])) or real_for_each(*args, **options)
    )
    fresh = open_store(tmp_path)
    assert len(fresh.index()) == 200
    assert (len(listed), len(read), at_once) == (1, 200, [200])
    write(store, range(200, 203), shard_bytes=1)
    assert len(fresh.index()) == 203
    assert (len(listed), len(read)) == (2, 203)
    files(tmp_path, "index")[0].unlink()
    assert len(fresh.index()) == 202


def test_what_others_leave_in_the_folders_is_ignored(store: ImageShards, tmp_path: Path) -> None:
    (name,) = write(store, range(3))
    for file in ("notes.parquet", f".{name}.parquet.0a1b", f"{name}.parquet.part", f"{'0' * 64}-77.parquet"):
        (tmp_path / "store" / "index" / file).write_bytes(b"something")
    pq.write_table(pa.table({"other": [1]}), tmp_path / "store" / "index" / f"{'1' * 64}-77.parquet")
    assert_all_read(store, range(3))


def test_a_store_can_be_sent_to_another_process(store: ImageShards) -> None:
    (name,) = write(store, range(3))
    store.read(name, 0)
    assert pickle.loads(pickle.dumps(store)).read(name, 2) == image_bytes(2)


def test_an_error_in_the_block_keeps_what_was_whole_and_drops_what_was_not(store: ImageShards) -> None:
    def broken_off() -> None:
        with store.writer(shard_bytes=3000) as writer:
            add_images(writer, range(30))
            raise StorageError("the bucket is gone")

    with pytest.raises(StorageError, match="gone"):
        broken_off()
    listed = {number_of(uri) for uri in store.index()["uri"].to_pylist()}
    assert 0 < len(listed) < 30
    assert_all_read(store, sorted(listed))


def test_a_shard_that_cannot_be_written_ends_the_block(store: ImageShards, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StorageError, match=f"{tmp_path}/store"):
        write(store, range(30))


def test_an_image_that_cannot_be_made_smaller_ends_the_block(store: ImageShards) -> None:
    def shrink() -> None:
        with store.writer(max_side=8) as writer:
            add_images(writer, range(3))

    with pytest.raises(BadImageError):
        shrink()
    assert len(store.index()) == 0


def test_the_folder_of_a_collection_follows_from_what_it_is(tmp_path: Path) -> None:
    spec = {"train": "s3://photos", "max_side": None}
    uri = collection_uri("s3://bucket/shards", spec)
    assert uri.startswith("s3://bucket/shards/")
    assert uri == collection_uri("s3://bucket/shards/", dict(reversed(spec.items())))
    assert uri != collection_uri("s3://bucket/shards", spec | {"max_side": 512})


def test_shards_are_written_listed_and_read_without_torch(tmp_path: Path) -> None:
    program = """
import sys
from shard_samples import add_images, assert_all_read
from tlray.data.shards import ImageShards
store = ImageShards(sys.argv[1], sys.argv[2])
with store.writer(max_side=1000) as writer:
    add_images(writer, range(3))
assert_all_read(store, range(3))
print("torch" in sys.modules)
"""
    assert run_python(program, tmp_path / "store", tmp_path / "cache") == "False\n"
