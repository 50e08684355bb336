"""What a store takes up, and who may be evicted when."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from activation_samples import image_ids, sample_key, start_python, values_of

from tlray import storage
from tlray.activations.shard import MAPS
from tlray.activations.store import ActivationStore
from tlray.errors import StorageError
from tlray.storage.stores import eviction, lease

KEYS = [sample_key(view=view) for view in range(4)]
IDS = image_ids(4)
DAY = 24 * 3600

HOLD_A_LEASE = """
import sys
from activation_samples import sample_key
from tlray.activations.store import ActivationStore
from tlray.storage.stores import eviction, lease
store = ActivationStore(sys.argv[1], cache="")
with store.lease("killed", [sample_key(view=0)]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "activations")


@pytest.fixture
def store(uri: str) -> Iterator[ActivationStore]:
    """One shard for each of four keys, used in the order of their numbers."""
    made = ActivationStore(uri, cache="")
    for key in KEYS:
        made.write_shard(key, IDS, values_of(IDS), run="a")
        made.touch(key)
    yield made
    MAPS.drop()


def with_room_for(uri: str, num_bytes: int) -> ActivationStore:
    """The same store, limited so that so much more fits."""
    return ActivationStore(uri, cache="", max_bytes=ActivationStore(uri, cache="").total_bytes() + num_bytes)


def stored(store: ActivationStore) -> list[int]:
    return [key.view for key in KEYS if not store.missing(key, IDS)]


def files_of(uri: str, view: int) -> list[str]:
    folder = Path(uri, KEYS[view].digest)
    return sorted(path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file())


def test_usage_is_what_the_files_take_up_when_they_were_used_and_by_whom(store: ActivationStore, uri: str) -> None:
    with store.lease("run 7", [KEYS[2]]), store.lease("run 8", [KEYS[2]]):
        usage = store.usage()
        on_disk = sum(path.stat().st_size for path in Path(uri).rglob("*") if path.is_file())
    assert list(usage) == sorted(key.digest for key in KEYS)
    assert [usage[key.digest].leased_by for key in KEYS] == [(), (), ("run 7", "run 8"), ()]
    assert sum(one.bytes for one in usage.values()) == on_disk
    used = [usage[key.digest].last_used for key in KEYS]
    assert used == sorted(used)
    assert time.time() - 60 < used[0] <= time.time()


def test_usage_reads_no_data(store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    real = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri: read.append(uri) or real(uri))
    store.usage()
    assert {uri.rpartition("/")[2] for uri in read} == {"used.json"}


def test_an_empty_store_takes_up_nothing(uri: str) -> None:
    store = ActivationStore(uri, cache="", max_bytes=10)
    assert store.total_bytes() == 0
    assert store.usage() == {}
    assert store.make_room(10)
    assert not store.make_room(11)


def test_room_is_made_at_the_cost_of_what_was_not_used_for_longest(store: ActivationStore, uri: str) -> None:
    store.touch(KEYS[0])
    one = store.usage()[KEYS[1].digest].bytes
    limited = with_room_for(uri, 0)
    assert limited.make_room(one + 1)
    assert stored(store) == [0, 3]
    assert files_of(uri, 1) == files_of(uri, 2) == []
    assert limited.total_bytes() + one + 1 <= limited.total_bytes() + 2 * one


def test_reading_counts_as_use(store: ActivationStore, uri: str) -> None:
    store.reader(KEYS[0], IDS)
    assert with_room_for(uri, 0).make_room(1)
    assert stored(store) == [0, 2, 3]


def test_where_there_is_room_nothing_is_evicted(store: ActivationStore, uri: str) -> None:
    assert with_room_for(uri, 100).make_room(100)
    assert store.make_room(10**15)  # no limit
    assert stored(store) == [0, 1, 2, 3]


def test_what_is_to_be_kept_or_leased_by_any_run_stays(store: ActivationStore, uri: str) -> None:
    with store.lease("a", [KEYS[0]]), store.lease("b", [KEYS[1]]):
        assert not with_room_for(uri, 0).make_room(10**9, keep=[KEYS[3].digest])
    assert stored(store) == [0, 1, 3]
    assert with_room_for(uri, 0).make_room(1, keep=[KEYS[3].digest])
    assert stored(store) == [1, 3]


def test_leases_end_with_their_block_and_not_with_that_of_another(store: ActivationStore) -> None:
    with store.lease("run", [KEYS[0], KEYS[0], KEYS[1]]):
        with store.lease("run", KEYS):
            assert all(one.leased_by == ("run",) for one in store.usage().values())
        assert [store.usage()[key.digest].leased_by for key in KEYS] == [("run",), ("run",), (), ()]
    with pytest.raises(ZeroDivisionError), store.lease("run", KEYS):
        raise ZeroDivisionError
    assert not any(one.leased_by for one in store.usage().values())


def test_a_lease_is_renewed_for_as_long_as_its_block_lasts(
    store: ActivationStore, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    renewed = []
    real, failures = storage.write_text, iter([True, False, True])

    def sometimes_failing(uri: str, text: str) -> None:
        if renewed and next(failures, False):
            raise StorageError(f"{uri}: the network is down")
        renewed.append(json.loads(text)["expires"])
        real(uri, text)

    monkeypatch.setattr(storage, "write_text", sometimes_failing)
    with store.lease("run", [KEYS[0]]):
        (path,) = Path(uri, KEYS[0].digest, "leases").iterdir()
        until = time.monotonic() + 30
        while len(renewed) < 5 and time.monotonic() < until:
            time.sleep(0.01)
        assert json.loads(path.read_text())["expires"] > time.time() + lease.LEASE_SECONDS / 2
    assert len(renewed) >= 5
    assert renewed == sorted(renewed)
    assert not path.exists()


def test_the_lease_of_a_killed_run_protects_until_it_expires(
    store: ActivationStore, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start_python(HOLD_A_LEASE, uri)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        os.kill(process.pid, signal.SIGKILL)
    assert store.usage()[KEYS[0].digest].leased_by == ("killed",)
    limited = with_room_for(uri, 0)
    assert limited.make_room(1)
    assert stored(store) == [0, 2, 3]
    now = time.time()
    monkeypatch.setattr(lease.time, "time", lambda: now + lease.LEASE_SECONDS + 1)
    assert store.usage()[KEYS[0].digest].leased_by == ()
    assert with_room_for(uri, 0).make_room(1)
    assert stored(store) == [2, 3]
    assert files_of(uri, 0) == []


def test_a_lease_that_cannot_be_read_protects_nothing(store: ActivationStore, uri: str) -> None:
    for number, text in enumerate(("", "{", "[]", '{"run": "a"}', '{"run": "a", "expires": "soon"}')):
        storage.write_text(f"{uri}/{KEYS[0].digest}/leases/{number}.json", text)
    assert store.usage()[KEYS[0].digest].leased_by == ()


def test_the_name_of_a_run_cannot_lead_out_of_the_folder(store: ActivationStore, uri: str) -> None:
    with store.lease("../../../run/7", [KEYS[0]]):
        (path,) = Path(uri, KEYS[0].digest, "leases").iterdir()
        assert path.is_file()
        assert store.usage()[KEYS[0].digest].leased_by == ("../../../run/7",)


def test_the_index_goes_before_the_data_and_the_rest(
    store: ActivationStore, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = []
    real = storage.delete
    monkeypatch.setattr(storage, "delete", lambda uri: removed.append(uri) or real(uri))
    assert with_room_for(uri, 0).make_room(1)
    assert [one.split("/")[-2] for one in removed[:2]] == ["index", "shards"]
    assert {one.rpartition("/")[2] for one in removed[2:]} == {"spec.json", "used.json"}


def test_whoever_takes_a_lease_while_a_key_is_evicted_keeps_what_it_saw(
    store: ActivationStore, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = store.reader(KEYS[0], IDS)
    for key in KEYS[1:]:
        store.touch(key)
    taken = store.lease("late", [KEYS[0]])
    real = storage.delete

    def lease_then_delete(uri: str) -> None:
        monkeypatch.setattr(storage, "delete", real)
        taken.__enter__()
        real(uri)

    monkeypatch.setattr(storage, "delete", lease_then_delete)
    assert with_room_for(uri, 0).make_room(1)
    np.testing.assert_array_equal(reader.read(np.arange(4))[0].numpy(), values_of(IDS)[0])
    assert stored(store) == [2, 3]
    taken.__exit__(None, None, None)


def test_orphans_are_swept_when_they_are_a_day_old(store: ActivationStore, uri: str) -> None:
    shards = Path(uri, KEYS[0].digest, "shards")
    (entry,) = store.index(KEYS[0]).entries
    names = [f"{entry.id}-{'0' * 16}.safetensors", f"{'0' * 32}-{'0' * 16}.safetensors", ".4be1.0a1b"]
    for name in names:
        (shards / name).write_bytes(b"left behind")
        (shards / f"{name}.new").write_bytes(b"just being written")
        os.utime(shards / name, (0, time.time() - eviction.ORPHAN_SECONDS - 60))
    os.utime(shards / entry.file, (0, time.time() - 10 * DAY))
    with store.lease("run", [KEYS[0]]):
        assert store.make_room(0)
        assert all((shards / name).exists() for name in names)  # may still be read
    assert store.make_room(0)
    assert sorted(path.name for path in shards.iterdir()) == sorted([entry.file, *(f"{name}.new" for name in names)])
    assert stored(store) == [0, 1, 2, 3]


def test_sweeping_alone_may_make_the_room(store: ActivationStore, uri: str) -> None:
    orphan = Path(uri, KEYS[0].digest, "shards", f"{'0' * 32}-{'0' * 16}.safetensors")
    orphan.write_bytes(bytes(1000))
    os.utime(orphan, (0, 0))
    assert with_room_for(uri, 0).make_room(1000)
    assert stored(store) == [0, 1, 2, 3]
