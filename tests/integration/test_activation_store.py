"""The store of activations on a real S3 server, with several processes, some of which are killed."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from activation_samples import KEY, flip_byte, image_ids, sample_key, start_python, values_of

from tlray import storage
from tlray.activations.errors import DamagedShardError
from tlray.activations.shard import MAPS
from tlray.activations.store import ActivationStore

pytestmark = pytest.mark.s3
IDS = image_ids(48)

# Writes shards of `step` images when told to begin; prints for each whether it was first.
WRITER = """
import sys
from activation_samples import KEY, image_ids, values_of
from tlray.activations.store import ActivationStore
uri, run, num_images, step = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
store, ids = ActivationStore(uri, cache=""), image_ids(num_images)
store.index(KEY)  # connects
print("ready", flush=True)
sys.stdin.readline()
for start in range(0, num_images, step):
    some = ids[start : start + step]
    print(store.write_shard(KEY, some, values_of(some), run=run), flush=True)
"""

# Kills itself before or after the n-th call of a function of tlray.storage.
KILLED_WRITER = (
    """
import os, signal, sys
from tlray import storage
name, number, when = sys.argv[5], int(sys.argv[6]), sys.argv[7]
real, calls = getattr(storage, name), []
def call(*arguments):
    calls.append(arguments)
    if len(calls) == number and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*arguments)
    if len(calls) == number and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(storage, name, call)
"""
    + WRITER
)

# Reads everything when told to begin; notes each download in a file.
READER = """
import os, sys
import numpy as np
from activation_samples import KEY, image_ids, values_of
from tlray import storage
from tlray.activations.store import ActivationStore
uri, cache, log, num_images = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
real = storage.download
def noted(uri, path):
    with open(log, "a") as file:
        file.write(uri + "\\n")
    real(uri, path)
storage.download = noted
ids = image_ids(num_images)
reader = ActivationStore(uri, cache=cache).reader(KEY, ids)
reader.read(np.array([], int))  # loads torch
print("ready", flush=True)
sys.stdin.readline()
for value, expected in zip(reader.read(np.arange(num_images)), values_of(ids), strict=True):
    np.testing.assert_array_equal(value.numpy(), expected)
print("equal")
"""

# Stops for good in the middle of its first download.
STUCK_READER = """
import sys, time
import numpy as np
from pathlib import Path
from activation_samples import KEY, image_ids
from tlray import storage
from tlray.activations.store import ActivationStore
def half(uri, path):
    path.write_bytes(storage.read_bytes(uri)[:100])
    print("half", flush=True)
    time.sleep(600)
storage.download = half
ids = image_ids(int(sys.argv[3]))
ActivationStore(sys.argv[1], cache=sys.argv[2]).reader(KEY, ids).read(np.arange(1))
"""


@pytest.fixture(autouse=True)
def _nothing_open() -> Iterator[None]:
    yield
    MAPS.drop()


@pytest.fixture
def uri(s3: Any) -> str:
    return f"{s3.uri}/some/activations"


def open_store(uri: str, tmp_path: Path) -> ActivationStore:
    return ActivationStore(uri, cache=str(tmp_path / "cache"))


def write(store: ActivationStore, ids: list[str]) -> bool:
    return store.write_shard(KEY, ids, values_of(ids), run="a")


def names(uri: str, part: str) -> list[str]:
    folder = f"{uri}/{KEY.digest}/{part}"
    if not storage.is_remote(uri) and not Path(folder).is_dir():
        return []
    return [file.uri.rpartition("/")[2] for file in storage.list_files(folder)]


def assert_whole(store: ActivationStore, ids: list[str]) -> None:
    reader = store.reader(KEY, ids)
    for value, expected in zip(reader.read(np.arange(len(ids))), values_of(ids), strict=True):
        np.testing.assert_array_equal(value.numpy(), expected)
    reader.close()


def tell(*processes: Any) -> None:
    """Wait until each is ready, then let them begin together."""
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()


def test_what_was_written_to_s3_is_read_from_copies_on_the_node(uri: str, tmp_path: Path) -> None:
    store = open_store(uri, tmp_path)
    for start in range(0, 48, 4):
        assert write(store, IDS[start : start + 4])
    assert not store.missing(KEY, IDS)
    assert_whole(store, IDS)
    copies = {path.name: path.stat().st_size for path in (tmp_path / "cache" / KEY.digest).iterdir()}
    assert copies == {entry.file: entry.bytes for entry in store.index(KEY).entries}
    assert set(copies) == set(names(uri, "shards"))
    usage = store.usage()[KEY.digest]
    assert usage.bytes == store.total_bytes() > sum(copies.values())
    assert abs(usage.last_used - time.time()) < 60


def test_two_processes_that_write_the_same_shards_make_each_visible_once(uri: str, tmp_path: Path) -> None:
    writers = [start_python(WRITER, uri, run, 48, 4) for run in "ab"]
    tell(*writers)
    won = [[line == "True" for line in process.communicate()[0].split()] for process in writers]
    assert [process.returncode for process in writers] == [0, 0]
    assert [first + second for first, second in zip(*won, strict=True)] == [1] * 12
    store = open_store(uri, tmp_path)
    runs = [entry.run for entry in store.index(KEY).entries]
    assert [runs.count("a"), runs.count("b")] == [sum(one) for one in won]
    assert sorted(entry.file for entry in store.index(KEY).entries) == names(uri, "shards")
    assert_whole(store, IDS)


def test_two_processes_may_cut_the_same_images_into_other_shards(uri: str, tmp_path: Path) -> None:
    writers = [start_python(WRITER, uri, run, 48, step) for run, step in (("a", 4), ("b", 6))]
    tell(*writers)
    printed = [process.communicate()[0].split() for process in writers]
    assert printed == [["True"] * 12, ["True"] * 8]
    store = open_store(uri, tmp_path)
    assert len(store.index(KEY)) == 48
    assert_whole(store, IDS)


POINTS = [
    ("create_exclusive", 1, "before", 0, 0),  # nothing written
    ("create_exclusive", 1, "after", 0, 0),  # only what the key is
    ("write_bytes", 1, "before", 0, 0),  # when it was used
    ("write_bytes", 2, "before", 0, 0),
    ("write_bytes", 2, "after", 0, 1),  # the data, but not the entry
    ("create_exclusive", 2, "before", 0, 1),
    ("create_exclusive", 2, "after", 1, 1),  # the entry
    ("write_bytes", 3, "after", 1, 2),  # the data of the next
]


@pytest.mark.parametrize(("function", "number", "when", "num_visible", "num_objects"), POINTS)
def test_a_writer_killed_at_any_point_leaves_at_most_data_that_nobody_sees(
    uri: str, tmp_path: Path, function: str, number: int, when: str, num_visible: int, num_objects: int
) -> None:
    writer = start_python(KILLED_WRITER, uri, "killed", 48, 16, function, number, when)
    _, errors = writer.communicate("\n")
    assert writer.returncode == -signal.SIGKILL, errors
    store = open_store(uri, tmp_path)
    assert len(store.index(KEY)) == 16 * num_visible
    assert (len(names(uri, "index")), len(names(uri, "shards"))) == (num_visible, num_objects)
    for start in range(0, 48, 16):
        assert write(store, IDS[start : start + 16]) == (start >= 16 * num_visible)
    assert_whole(store, IDS)


def test_kills_at_random_moments_leave_only_whole_shards_on_local_disk(tmp_path: Path) -> None:
    uri, random_moment = str(tmp_path / "activations"), random.Random(0)
    store, finished = open_store(uri, tmp_path), set()
    for _ in range(8):
        writer = start_python(WRITER, uri, "killed", 48, 2)
        tell(writer)
        time.sleep(random_moment.uniform(0, 0.03))
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
        entries = {entry.id: entry.file for entry in store.index(KEY).entries}
        assert finished <= set(entries.items())  # what was there stays, untouched
        finished = set(entries.items())
        there = [one for one in IDS if one in store.index(KEY)]
        if there:
            assert_whole(store, there)
    for start in range(0, 48, 2):
        write(store, IDS[start : start + 2])
    assert_whole(store, IDS)
    visible = [name for name in names(uri, "shards") if name in {entry.file for entry in store.index(KEY).entries}]
    assert len(visible) == 24


def test_processes_of_a_node_download_each_shard_once(uri: str, tmp_path: Path) -> None:
    store = open_store(uri, tmp_path)
    for start in range(0, 48, 4):
        write(store, IDS[start : start + 4])
    log = tmp_path / "downloads"
    readers = [start_python(READER, uri, tmp_path / "cache", log, 48) for _ in range(3)]
    tell(*readers)
    for process in readers:
        printed, errors = process.communicate()
        assert printed == "equal\n", errors
    downloaded = sorted(line.rpartition("/")[2] for line in log.read_text().splitlines())
    assert downloaded == names(uri, "shards")


def test_a_download_that_was_killed_half_way_is_done_again(uri: str, tmp_path: Path) -> None:
    store = open_store(uri, tmp_path)
    write(store, IDS)
    process = start_python(STUCK_READER, uri, tmp_path / "cache", 48)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        os.kill(process.pid, signal.SIGKILL)
    assert_whole(store, IDS)
    assert [path.name for path in (tmp_path / "cache" / KEY.digest).iterdir()] == names(uri, "shards")


def test_a_damaged_copy_is_fetched_again(uri: str, tmp_path: Path) -> None:
    store = open_store(uri, tmp_path)
    write(store, IDS)
    assert_whole(store, IDS)
    (copy,) = (tmp_path / "cache" / KEY.digest).iterdir()
    flip_byte(copy)
    assert_whole(open_store(uri, tmp_path), IDS)
    assert copy.read_bytes() == storage.read_bytes(f"{uri}/{KEY.digest}/shards/{copy.name}")


@pytest.mark.parametrize("damage", ["a byte is flipped", "it is gone"])
def test_a_damaged_object_is_taken_out_of_the_index(uri: str, tmp_path: Path, damage: str) -> None:
    store = open_store(uri, tmp_path)
    write(store, IDS[:20])
    write(store, IDS[20:])
    entry = next(entry for entry in store.index(KEY).entries if IDS[0] in entry.content_ids)
    damaged = f"{uri}/{KEY.digest}/shards/{entry.file}"
    data = storage.read_bytes(damaged)
    storage.delete(damaged)
    if damage != "it is gone":
        storage.write_bytes(damaged, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedShardError, match=f"{damaged} is damaged.*`tlray resume`"):
        store.reader(KEY, IDS).read(np.arange(48))
    assert open_store(uri, tmp_path).missing(KEY, IDS) == IDS[:20]
    assert write(store, IDS[:20])
    assert_whole(store, IDS)


def test_room_is_made_on_s3_but_never_at_the_cost_of_what_is_leased(uri: str, tmp_path: Path) -> None:
    keys = [sample_key(view=view) for view in range(3)]
    store = open_store(uri, tmp_path)
    for key in keys:
        store.write_shard(key, IDS, values_of(IDS), run="a")
        store.touch(key)
    limited = ActivationStore(uri, cache=str(tmp_path / "cache"), max_bytes=store.total_bytes())
    with store.lease("another run", keys[:1]):
        assert store.usage()[keys[0].digest].leased_by == ("another run",)
        assert limited.make_room(1)
    assert [bool(store.missing(key, IDS)) for key in keys] == [False, True, False]
    assert not list(storage.list_files(f"{uri}/{keys[1].digest}"))
