"""When a retraining does nothing, what it goes on with after a kill, whom it promotes; the sweep is a stand-in."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.retrain_fakes import World, world
from tlray import storage
from tlray.errors import NothingToDo, StorageError, TlrayError, TrialError
from tlray.runs.champion import history, load_champion, rollback
from tlray.workflows.retrain import flow
from tlray.workflows.retrain.flow import look
from tlray.workflows.retrain.state import load_state

__all__ = ["world"]


def add_image(world: World, name: str = "new.jpg") -> None:
    """One more image, of contents that no other one has."""
    source = next((world.folder / "images" / "red").iterdir())
    (world.folder / "images" / "red" / name).write_bytes(source.read_bytes() + name.encode())


def touch_all(world: World) -> None:
    for path in (world.folder / "images").rglob("*.jpg"):
        os.utime(path, ns=(1, 1))


# --- nothing to do


def test_the_first_retraining_makes_the_first_champion_and_the_second_has_nothing_to_do(world: World) -> None:
    record = world.retrain()
    champion = load_champion(world.home)
    assert (champion.number, champion.run, champion.export) == (1, record.run, record.challenger.export)
    assert record.cause == "there is no champion yet"
    assert world.output.getvalue().splitlines() == [
        "retraining: there is no champion yet",
        f"run folder: {record.run}",
        f"champion 1 promoted: {record.challenger.export}",
        f"report: {record.run}/retrain.html",
    ]
    with pytest.raises(NothingToDo, match=r"data and configuration are those of .*the first champion"):
        world.retrain()
    assert len(world.swept) == 1
    assert world.connected == 1


def test_a_dry_run_says_what_a_retraining_would_do_and_does_not(world: World) -> None:
    assert look(world.config()) == "would sweep: there is no champion that came of a retraining"
    assert not world.swept
    world.retrain()
    before = sorted(world.folder.rglob("*"))
    with pytest.raises(NothingToDo, match="data and configuration are those of"):
        look(world.config())
    assert look(world.config(seed=7)) == "would sweep: the configuration has changed: seed 0 -> 7"
    assert sorted(world.folder.rglob("*")) == before
    add_image(world)
    assert look(world.config()).startswith("would sweep: names, sizes or dates of the images have changed")
    assert len(world.swept) == 1


def test_what_was_refused_is_not_tried_again_every_night(world: World) -> None:
    world.retrain()
    add_image(world)
    world.better = False
    assert world.retrain().outcome == "refused"
    assert load_champion(world.home).number == 1
    with pytest.raises(NothingToDo, match="refused"):
        world.retrain()
    assert len(world.swept) == 2


def test_data_that_are_again_what_they_were_have_been_judged(world: World) -> None:
    world.retrain()
    add_image(world)
    world.retrain()
    (world.folder / "images" / "red" / "new.jpg").unlink()
    with pytest.raises(NothingToDo):
        world.retrain()


def test_a_rollback_is_not_undone_by_the_next_retraining(world: World) -> None:
    world.retrain()
    add_image(world)
    world.retrain()
    rollback(world.home)
    with pytest.raises(NothingToDo):
        world.retrain()
    assert load_champion(world.home).restored == 1


def test_touched_files_are_read_once_and_then_known(world: World) -> None:
    world.retrain()
    touch_all(world)
    with pytest.raises(NothingToDo, match="under other names or dates"):
        world.retrain()
    assert world.connected == 2, "whether the contents are new has to be read"
    with pytest.raises(NothingToDo, match="data and configuration"):
        world.retrain()
    assert world.connected == 2
    assert len(world.swept) == 1


def test_a_changed_class_and_a_changed_configuration_are_causes_and_are_named(world: World) -> None:
    world.retrain()
    image = next((world.folder / "images" / "red").iterdir())
    image.rename(world.folder / "images" / "blue" / "moved.jpg")
    assert world.retrain().cause == "the images have changed"
    assert world.retrain(training={"lr": 0.5}).cause == "the configuration has changed: training.lr 0.001 -> 0.5"
    with pytest.raises(NothingToDo):
        world.retrain(training={"lr": 0.5})


@pytest.mark.parametrize(
    "fields",
    [
        {"export": {"top_k": 3}},
        {"retrain": {"confidence": 0.99, "webhook": "https://h.example"}},
        {"sweep": {"max_failures": 9, "cpus_per_worker": 2}},
        {"activations": {"materialise": "never"}},
        {"baseline": {"training": {"epochs": 1}}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_no_model_is_made_from_is_no_cause(world: World, fields: dict[str, Any]) -> None:
    world.retrain()
    with pytest.raises(NothingToDo):
        world.retrain(**fields)


def test_a_champion_promoted_by_hand_stands_for_its_images(world: World) -> None:
    world.retrain()
    os.remove(f"{world.home}/retrain.json")  # as if `tlray run` and `tlray promote` had made it
    with pytest.raises(NothingToDo):
        world.retrain()
    assert len(world.swept) == 1
    with pytest.raises(NothingToDo, match="data and configuration"):
        world.retrain()
    assert world.retrain(seed=1).cause == "the configuration has changed: seed 0 -> 1"


def test_who_removes_the_champion_gets_another_one(world: World) -> None:
    world.retrain()
    os.remove(f"{world.home}/champion.json")
    record = world.retrain()
    assert (record.outcome, record.cause) == ("first", "there is no champion any more")
    assert load_champion(world.home).number == 2
    with pytest.raises(NothingToDo):
        world.retrain()


# --- the search


def test_the_search_begins_with_the_champion_and_exports_without_the_webhook(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlray.workflows.retrain.webhook.PAUSE_SECONDS", 0.001)
    world.retrain(training={"lr": 0.25})
    add_image(world)
    world.retrain(training={"lr": 0.5}, export={"top_k": 0}, retrain={"webhook": "http://127.0.0.1:9/T0KEN"})
    first, second = world.swept
    assert first.warm_start is None
    assert second.warm_start is not None
    assert second.warm_start.training.lr == 0.25
    assert second.export.top_k == 1
    assert "T0KEN" not in world.output.getvalue()
    assert "warning: the webhook at 127.0.0.1 gave no answer" in world.output.getvalue()
    assert load_champion(world.home).number == 2


def test_a_backbone_that_was_taken_out_of_the_configuration_does_not_come_back(world: World) -> None:
    world.retrain()
    world.retrain(backbones=["timm/test_vit"])
    assert world.swept[1].warm_start is None
    world.retrain(backbones=["timm/test_resnet", "timm/test_vit"], seed=1, retrain={"warm_start": False})
    assert world.swept[2].warm_start is None


def test_synthetic_images_are_refused(world: World) -> None:
    with pytest.raises(TlrayError, match=r"data\.synthetic never changes"):
        world.retrain(data={"synthetic": {"location": "x"}})


def test_a_champion_without_its_export_is_told_before_anything_is_spent(world: World) -> None:
    world.retrain()
    shutil.rmtree(f"{load_champion(world.home).export}")
    add_image(world)
    with pytest.raises(StorageError, match="the export of champion 1, is gone"):
        world.retrain()
    assert len(world.swept) == 1


# --- interrupted


def test_an_interrupted_retraining_goes_on_with_its_run_though_images_have_come(world: World) -> None:
    world.retrain()
    add_image(world)
    world.fails = True
    with pytest.raises(TrialError):
        world.retrain()
    world.fails = False
    begun = load_state(world.home).pending
    assert begun is not None
    add_image(world, "newer.jpg")
    record = world.retrain()
    assert record.run == begun.run
    assert world.resumed == [begun.run]
    assert len(world.swept) == 2
    assert world.retrain().run != begun.run, "what has come since is for the next one"


@pytest.mark.parametrize("change", ["image gone", "image replaced", "configuration"])
def test_an_interrupted_retraining_of_what_is_no_more_is_given_up(world: World, change: str) -> None:
    world.retrain()
    add_image(world)
    world.fails = True
    with pytest.raises(TrialError):
        world.retrain()
    world.fails = False
    begun = load_state(world.home).pending
    assert begun is not None
    image = world.folder / "images" / "red" / "new.jpg"
    if change == "image gone":
        next((world.folder / "images" / "blue").iterdir()).unlink()
    elif change == "image replaced":
        image.write_bytes(image.read_bytes() + b"!")
    assert world.retrain(seed=1 if change == "configuration" else 0).run != begun.run
    assert world.resumed == []


class Killed(BaseException):
    """What a kill looks like from within: nothing may catch it."""


def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The `number`-th write to storage from now on is not made, nor any after it."""
    left = [number]

    def counted(write: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] <= 0:
                raise Killed
            return write(*arguments)

        return instead

    for name in ("write_bytes", "write_text", "create_exclusive", "replace", "upload_folder"):
        monkeypatch.setattr(storage, name, counted(getattr(storage, name)))


def test_a_retraining_killed_at_any_write_is_finished_by_the_next_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlray.runs.lease.LEASE_SECONDS", 0.04)  # the dead one is this process, which lives
    world.retrain()
    add_image(world)
    shutil.copytree(world.folder / "runs", world.folder / "kept")
    for number in range(1, 100):
        shutil.rmtree(world.folder / "runs")
        shutil.copytree(world.folder / "kept", world.folder / "runs")
        world.swept.clear()
        with monkeypatch.context() as patch:
            killed_at(number, patch)
            try:
                world.retrain()
                was_killed = False
            except Killed:
                was_killed = True
        finished = len(list(Path(world.home).glob("*/DONE"))) - 1
        try:
            world.retrain()
        except NothingToDo:
            assert load_state(world.home).pending is None
        assert load_champion(world.home).number == 2
        assert [champion.number for champion in history(world.home)] == [1, 2]
        assert len(list(Path(world.home).glob("*/DONE"))) == 2, "a finished sweep is not paid twice"
        assert len(world.swept) == 1 or not finished
        state = load_state(world.home)
        assert [one.verdict for one in state.judged] == ["first", "promoted"]
        assert (
            json.loads(Path(load_champion(world.home).run or "", "retrain.json").read_text())["outcome"] == "promoted"
        )
        assert Path(load_champion(world.home).run or "", "retrain.html").exists()
        if not was_killed:
            break
    assert 10 < number < 99, "every write was tried"


def test_a_champion_replaced_while_the_challenger_was_judged_is_judged_against(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.retrain()
    add_image(world)
    duel = world.duel

    def overtaken(*arguments: Any) -> Any:
        record = duel(*arguments)
        if len(world.fought) == 2:
            from tlray.runs.champion import promote, read_champion

            promote(world.home, first.challenger, read_champion(world.home), by="hand", reason="I say so")
        return record

    monkeypatch.setattr(sys.modules["tlray.workflows.retrain.duel"], "make_record", overtaken)
    with pytest.raises(TlrayError, match="the champion has been replaced while the challenger was judged"):
        world.retrain()
    assert load_champion(world.home).number == 2
    record = world.retrain()
    assert world.fought == [None, 1, 2]
    assert record.champion is not None
    assert record.champion.number == 2
    assert load_champion(world.home).number == 3
    assert len(world.swept) == 2


def test_two_at_once_one_retrains(world: World) -> None:
    refused: list[NothingToDo] = []

    def another() -> None:
        with pytest.raises(NothingToDo, match="another retraining is at work here already") as reason:
            world.retrain()
        refused.append(reason.value)

    world.during_the_sweep = another
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tlray.runs.lease.RENEW_SECONDS", 0.05)
        patch.setattr("tlray.runs.lease.WATCH_SECONDS", 0.02)
        world.retrain()
    assert len(refused) == 1
    assert refused[0].exit_code == 3
    assert len(world.swept) == 1


def test_the_webhook_is_told_who_is_champion_now(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(flow, "post", lambda url, content, timeout: told.append((url, content)))
    monkeypatch.setenv("TLRAY_WEBHOOK", "https://h.example/T0KEN")
    world.retrain()
    add_image(world)
    world.better = False
    world.retrain(retrain={"webhook": "https://other.example"})
    assert [(url, content["event"], content["champion"]) for url, content in told] == [
        ("https://h.example/T0KEN", "promoted", 1),
        ("https://other.example", "refused", 1),
    ]
    assert told[1][1]["reasons"] == ["not better"]
    json.dumps(told)
