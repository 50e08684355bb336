"""Prepared shards on a real S3 server: the round trip, writers and readers in several processes."""

import signal
from pathlib import Path
from typing import Any

import pytest
from activation_samples import flip_byte, start_python
from shard_samples import add_images, assert_all_read, image_bytes, number_of

from tlray import storage
from tlray.data.shards import DamagedImageShardError, ImageShards

pytestmark = pytest.mark.s3

# Writes images when told to begin.
WRITER = """
import sys
from shard_samples import add_images
from tlray.data.shards import ImageShards
uri, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = ImageShards(uri, "")
store.index()  # connects
print("ready", flush=True)
sys.stdin.readline()
with store.writer(shard_bytes=5000) as writer:
    add_images(writer, range(first, last))
print(len(writer.names))
"""

# Kills itself when the data of its third shard is there, but not the entry.
KILLED_WRITER = (
    """
import os, signal
from tlray import storage
real, calls = storage.write_bytes, []
def write_bytes(*arguments):
    real(*arguments)
    calls.append(arguments)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
storage.write_bytes = write_bytes
"""
    + WRITER
)

# Reads everything when told to begin; prints how many shards it had to download.
READER = """
import sys
from shard_samples import assert_all_read
from tlray import storage
from tlray.data.shards import ImageShards
real, done = storage.download, []
def counted(uri, path):
    done.append(uri)
    real(uri, path)
storage.download = counted
store = ImageShards(sys.argv[1], sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
assert_all_read(store, range(int(sys.argv[3])))
print(len(done))
"""


@pytest.fixture
def uri(s3: Any) -> str:
    return f"{s3.uri}/some/shards"


def open_store(uri: str, tmp_path: Path) -> ImageShards:
    return ImageShards(uri, str(tmp_path / "cache"))


def write(store: ImageShards, numbers: range) -> list[str]:
    with store.writer(shard_bytes=5000) as writer:
        add_images(writer, numbers)
    return writer.names


def names(uri: str, part: str) -> list[str]:
    return [Path(file.uri).stem for file in storage.list_files(f"{uri}/{part}")]


def tell(*processes: Any) -> list[str]:
    """Wait until each is ready, let them begin together; what they print."""
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), ended
    return [printed for printed, _ in ended]


def test_what_was_written_to_s3_is_read_from_copies_on_the_node(uri: str, tmp_path: Path) -> None:
    store = open_store(uri, tmp_path)
    written = write(store, range(100))
    assert len(written) > 5
    assert sorted(written) == names(uri, "shards") == names(uri, "index")
    assert_all_read(open_store(uri, tmp_path), range(100))
    assert {path.stem for path in (tmp_path / "cache").glob("*/*.arrow")} == set(written)


def test_two_processes_may_write_the_same_and_other_images_at_once(uri: str, tmp_path: Path) -> None:
    printed = tell(*(start_python(WRITER, uri, first, first + 150) for first in (0, 75)))
    assert sum(map(int, printed)) == len(names(uri, "index")) == len(names(uri, "shards"))
    assert_all_read(open_store(uri, tmp_path), range(225))


def test_processes_of_a_node_download_each_shard_once(uri: str, tmp_path: Path) -> None:
    written = write(open_store(uri, tmp_path), range(100))
    printed = tell(*(start_python(READER, uri, tmp_path / "cache", 100) for _ in range(3)))
    assert sum(map(int, printed)) == len(written)


def test_what_a_killed_writer_had_not_finished_is_not_seen(uri: str, tmp_path: Path) -> None:
    with start_python(KILLED_WRITER, uri, 0, 100) as writer:
        _, errors = writer.communicate("\n")
    assert writer.returncode == -signal.SIGKILL, errors
    assert (len(names(uri, "index")), len(names(uri, "shards"))) == (2, 3)
    store = open_store(uri, tmp_path)
    seen = [number_of(one) for one in store.index()["uri"].to_pylist()]
    assert_all_read(store, seen)
    write(store, range(len(seen), 100))
    assert_all_read(store, range(100))


def test_a_damaged_object_is_named_and_its_images_can_be_prepared_again(uri: str, tmp_path: Path) -> None:
    store = open_store(uri, tmp_path)
    written = write(store, range(30))
    data = f"{uri}/shards/{written[0]}.arrow"
    storage.download(data, tmp_path / "damaged")
    flip_byte(tmp_path / "damaged", 900)
    storage.write_bytes(data, (tmp_path / "damaged").read_bytes())
    with pytest.raises(DamagedImageShardError, match=rf"{data} is damaged \(its checksum differs\)"):
        store.read(written[0], 0)
    write(store, range(30))
    assert_all_read(store, range(30))


def test_an_index_of_200_shards_is_read_by_many_requests_at_once(uri: str, tmp_path: Path) -> None:
    with open_store(uri, tmp_path).writer(shard_bytes=1) as writer:
        add_images(writer, range(200))
    fresh = open_store(uri, tmp_path)
    table = fresh.index()
    assert len(table) == len(set(table["shard"].to_pylist())) == 200
    row = table.slice(137, 1).to_pylist()[0]
    assert fresh.read(row["shard"], row["row"]) == image_bytes(number_of(row["uri"]))
