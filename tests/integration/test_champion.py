"""champion.json on local disk and on S3: promoted by compare and swap, its history, the way back, the lease."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import fake_bundle

from tlray import storage
from tlray.config import DataConfig
from tlray.data.manifest import make_manifest
from tlray.errors import InputError, NothingToDo, StorageError, TrialError
from tlray.runs import lease as leases
from tlray.runs.champion import (
    Candidate,
    Champion,
    ChampionChanged,
    champion_uri,
    history,
    load_champion,
    promote,
    read_champion,
    rollback,
)
from tlray.runs.lease import Lease, hold
from tlray.storage.sealed import sealed
from tlray.workflows.retrain.changes import all_still_there, list_data


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "runs" / "birds")
    return f"{request.getfixturevalue('s3').uri}/runs/birds"


def candidate(home: str, name: str) -> Candidate:
    """One whose export is there."""
    export = f"{home}/{name}/exports/1-resnet50"
    fake_bundle(export, checkpoint_sha256=name)
    return Candidate(
        export=export,
        run=f"{home}/{name}",
        trial_id="001-resnet50-full",
        backbone="timm/resnet50",
        strategy="full",
        params={"lr": 0.1},
        classes=("a", "b"),
        metrics={"test_accuracy": 0.9},
        fingerprint="f",
        start=None,
        checkpoint_sha256=name,
    )


def made(home: str, name: str) -> Champion:
    return promote(home, candidate(home, name), read_champion(home), by="hand", reason=f"{name} is good")


# --- compare and swap


def test_a_file_is_replaced_only_while_it_holds_what_is_expected(home: str) -> None:
    uri = storage.join(home, "file")
    assert not storage.replace(uri, b"old", b"new"), "there is none"
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"old")
    assert not storage.replace(uri, b"older", b"new")
    assert storage.replace(uri, b"old", b"new")
    assert not storage.replace(uri, b"old", b"newer")
    assert storage.read_bytes(uri) == b"new"


def test_of_many_who_replace_a_file_at_once_one_does(home: str) -> None:
    uri = storage.join(home, "file")
    with ThreadPoolExecutor(12) as pool:
        for race in range(10):
            old = b"old of race %d" % race
            storage.write_bytes(uri, old)
            new = [b"%d of race %d" % (racer, race) for racer in range(12)]
            done = list(pool.map(partial(storage.replace, uri, old), new))
            assert sum(done) == 1
            assert storage.read_bytes(uri) == new[done.index(True)]


def test_the_version_of_a_file_is_the_one_of_its_listing_and_changes_with_it(home: str) -> None:
    uri = storage.join(home, "file")
    storage.write_bytes(uri, b"first")
    (listed,) = storage.list_files(home)
    assert storage.version_of(uri) == listed.version
    storage.write_bytes(uri, b"second")
    assert storage.version_of(uri) != listed.version
    with pytest.raises(storage.NotFoundError, match="nothing does not exist"):
        storage.version_of(storage.join(home, "nothing"))


# --- promotions


def test_a_champion_is_found_by_its_file_and_by_its_folder(home: str) -> None:
    with pytest.raises(storage.NotFoundError, match=r"champion\.json does not exist"):
        load_champion(home)
    champion = made(home, "one")
    assert load_champion(home) == load_champion(champion_uri(home)) == champion
    assert (champion.number, champion.previous, champion.by) == (1, None, "hand")


def test_every_champion_is_kept_by_its_number(home: str) -> None:
    champions = [made(home, name) for name in ("one", "two", "three")]
    assert [champion.number for champion in champions] == [1, 2, 3]
    assert history(home) == tuple(champions)
    assert json.loads(storage.read_text(f"{home}/champions/0002.json"))["reason"] == "two is good"


def test_a_promotion_judged_against_another_champion_changes_nothing(home: str) -> None:
    made(home, "one")
    seen = read_champion(home)
    second = made(home, "two")
    with pytest.raises(ChampionChanged, match="changed by somebody else"):
        promote(home, candidate(home, "three"), seen, by="retrain", reason="better")
    with pytest.raises(ChampionChanged):
        promote(home, candidate(home, "three"), None, by="retrain", reason="the first")
    assert load_champion(home) == second
    assert history(home)[-1] == second


def test_of_many_promotions_at_once_one_succeeds(home: str) -> None:
    made(home, "one")
    seen = read_champion(home)
    candidates = [candidate(home, f"racer{number}") for number in range(8)]

    def race(one: Candidate) -> bool:
        try:
            promote(home, one, seen, by="retrain", reason="better")
        except ChampionChanged:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, candidates))
    assert sum(won) == 1
    assert load_champion(home).export == candidates[won.index(True)].export
    assert [champion.number for champion in history(home)] == [1, 2]


def test_a_promotion_killed_before_its_history_is_written_is_in_the_history_all_the_same(home: str) -> None:
    made(home, "one")
    second = made(home, "two")
    storage.delete(f"{home}/champions/0002.json")  # as if killed in between
    assert history(home)[-1] == second
    made(home, "three")
    assert [champion.number for champion in history(home)] == [1, 2, 3]
    assert rollback(home).restored == 2


# --- the way back


def test_a_rollback_goes_back_step_by_step_and_is_itself_kept(home: str) -> None:
    first, second, _ = (made(home, name) for name in ("one", "two", "three"))
    back = rollback(home)
    assert (back.export, back.number, back.restored, back.by) == (second.export, 4, 2, "rollback")
    again = rollback(home)
    assert (again.export, again.number, again.restored) == (first.export, 5, 1)
    with pytest.raises(InputError, match="is the first"):
        rollback(home)
    fourth = made(home, "four")
    assert rollback(home).export == first.export, "of the champion before the fourth"
    assert [champion.number for champion in history(home)] == [1, 2, 3, 4, 5, 6, 7]
    assert fourth.number == 6


def test_a_rollback_to_an_export_that_is_gone_changes_nothing(home: str) -> None:
    first = made(home, "one")
    second = made(home, "two")
    storage.delete(f"{first.export}/SHA256SUMS")
    with pytest.raises(StorageError, match=r"the export of champion 1, is gone: .*tlray promote"):
        rollback(home)
    assert load_champion(home) == second


def test_there_is_nothing_to_roll_back_before_the_first(home: str) -> None:
    with pytest.raises(InputError, match="nothing to roll back"):
        rollback(home)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is damaged: restore it"),
        ('{"format_version": 1}', "is damaged: restore it .* earlier version"),
        (sealed({"format_version": 3}), "has format_version 3, this tlray reads 2"),
        (sealed({"format_version": 2}), "is not a champion that tlray wrote: export"),
    ],
)
def test_a_broken_champion_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "champion.json").write_text(text)
    with pytest.raises(StorageError, match=said):
        load_champion(str(tmp_path))


# --- one retraining at a time


def claim(home: str, lease_seconds: float | None = None) -> AbstractContextManager[Lease]:
    """The lease of who retrains."""
    return hold(f"{home}/retrain.lock", "another retraining", lease_seconds)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(leases, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(leases, "LEASE_SECONDS", 2.0)


@pytest.mark.usefixtures("quick")
def test_while_one_holds_the_lease_another_is_sent_away_and_afterwards_not(home: str) -> None:
    with claim(home) as held:
        with (
            pytest.raises(NothingToDo, match=f"another retraining is at work here already \\(process {os.getpid()} on"),
            claim(home),
        ):
            pass
        held.check()
    with claim(home) as held:
        held.check()


@pytest.mark.usefixtures("quick")
def test_a_lease_that_nobody_renews_runs_out_and_its_holder_notices(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    renew = leases.Lease.renew
    monkeypatch.setattr(leases.Lease, "renew", lambda held: None)  # processes that hang
    told: list[int] = []
    monkeypatch.setattr(leases, "_stop_working", lambda held: told.append(1))
    with claim(home) as stuck, claim(home, lease_seconds=0.3) as taken:
        taken.check()
        renew(stuck)  # it wakes up
        with pytest.raises(TrialError, match="another process has taken over"):
            stuck.check()
        renew(taken)
        taken.check()
        stuck_thread_ends = time.monotonic() + 10
        while not told and time.monotonic() < stuck_thread_ends:
            time.sleep(0.02)
    assert told == [1], "what the dead one was training must stop, and the one that took over goes on"


@pytest.mark.usefixtures("quick")
def test_of_many_who_find_a_dead_lease_one_takes_it(home: str) -> None:
    storage.write_text(f"{home}/retrain.lock", json.dumps({"host": "gone", "process": 1, "started": 0.0}))
    takers: list[Any] = []

    def take(_: int) -> bool:
        try:
            takers.append(leases._take(f"{home}/retrain.lock", "another", 0.3))
        except NothingToDo:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(take, range(6))) == 1
    assert len(takers) == 1


HOLD_AND_DIE = """
import os, sys
from tlray.workflows.retrain.changes import all_still_there, list_data
from tlray.runs.lease import hold
with hold(sys.argv[1], "another retraining"):
    os.kill(os.getpid(), 9)
"""


def test_the_lease_of_a_process_of_this_machine_that_was_killed_does_not_block_at_all(tmp_path: Path) -> None:
    home = str(tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    killed = subprocess.run([sys.executable, "-c", HOLD_AND_DIE, f"{home}/retrain.lock"], env=environment, check=False)
    assert killed.returncode == -9
    with claim(home, lease_seconds=3600) as held:
        held.check()


@pytest.mark.usefixtures("quick")
def test_what_is_no_lease_is_watched_and_then_taken(tmp_path: Path) -> None:
    (tmp_path / "retrain.lock").write_text("not JSON")
    with claim(str(tmp_path), lease_seconds=0.2) as held:
        held.check()


@pytest.mark.usefixtures("quick")
def test_a_server_that_does_not_answer_for_a_moment_costs_no_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace: Callable[..., bool] = storage.replace
    answers = iter([False, False])

    def unreliable(*arguments: Any) -> bool:
        if next(answers, True):
            return replace(*arguments)
        raise StorageError("no answer")

    with claim(str(tmp_path)) as held:
        monkeypatch.setattr(storage, "replace", unreliable)
        time.sleep(0.5)
        held.check()
    assert json.loads((tmp_path / "retrain.lock").read_text())["released"]


# --- what a listing says


def test_a_listing_changes_with_an_image_wherever_images_lie(home: str, image_folder: Path) -> None:
    for path in image_folder.rglob("*.jpg"):
        storage.write_bytes(storage.join(home, "images", path.parent.name, path.name), path.read_bytes())
    data = DataConfig.model_validate({"train": f"{home}/images", "val_fraction": 0.25, "test_fraction": 0.25})
    listing, manifest = list_data(data), make_manifest(data)
    assert list_data(data) == listing
    storage.write_bytes(f"{home}/images/red/new.jpg", b"anything")
    assert list_data(data) != listing
    assert all_still_there(manifest, data)
    storage.delete(f"{home}/images/red/new.jpg")
    assert list_data(data) == listing
    storage.write_bytes(f"{home}/images/red/00.jpg", b"something else")
    assert list_data(data) != listing
    assert not all_still_there(manifest, data)
