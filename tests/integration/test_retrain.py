"""Retraining on a real Ray: from the first champion over a better and a worse challenger to the rollback."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from tlray import storage
from tlray.config.file import parse_config
from tlray.data.splits import position
from tlray.errors import NothingToDo
from tlray.inference.predict import open_model
from tlray.runs import lease
from tlray.runs.champion import history, load_champion, rollback
from tlray.runs.prepare import load_run
from tlray.runs.trials import load_results
from tlray.workflows.retrain.drift import Drift
from tlray.workflows.retrain.flow import retrain
from tlray.workflows.retrain.record import Record

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

NETWORK = {"id": "timm/test_resnet", "weights": "none", "input_size": 32}
COLOURS = {"blue": (70, 90, 170), "green": (80, 160, 90), "red": (170, 80, 70)}
TEST_FRACTION = 0.3
HOPELESS, GOOD = 1e-7, 0.03  # rates of the head
WriteConfig = Callable[..., Path]


def add_images(folder: Path, first: int, count: int) -> None:
    """`count` images of each class, from number `first` on."""
    for label, colour in COLOURS.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            noise = np.random.default_rng([number, *colour]).normal(0, 40, (32, 32, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number:03}.png")


def shuffle_training_labels(folder: Path) -> None:
    """Every image that is not tested on goes to the next class's folder."""
    names = list(COLOURS)
    for path in sorted(folder.rglob("*.png")):
        if position(0, hashlib.sha256(path.read_bytes()).hexdigest()) >= TEST_FRACTION:
            following = names[(names.index(path.parent.name) + 1) % len(names)]
            path.rename(folder / following / f"moved-{path.parent.name}-{path.name}")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    add_images(tmp_path / "images", 0, 100)
    return tmp_path / "images"


@pytest.fixture
def write_config(images: Path, tmp_path: Path) -> WriteConfig:
    """Linear probes on random features, which tell colours apart where the rate lets them learn."""

    def write(**fields: Any) -> Path:
        config = {
            "name": "colours",
            "storage": str(tmp_path / "runs"),
            "data": {"train": str(images), "val_fraction": 0.15, "test_fraction": TEST_FRACTION},
            "backbones": [NETWORK],
            "strategies": [{"strategy": "linear_probe", "solver": "gradient"}],
            "training": {"epochs": 2, "batch_size": 16, "lr": HOPELESS, "augmentation": "none"},
            "baseline": {"backbone": NETWORK, "training": {"epochs": 1}},
            "activations": {"materialise": "always"},
            "sweep": {"scheduler": "fifo", "max_failures": 0},
            "retrain": {"min_test_images": 30, "min_class_images": 10},
            **fields,
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture
def quick_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.3)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.1)


def retrain_here(config: Path) -> Record:
    return retrain(parse_config(config.read_text()), Console(file=io.StringIO()))


def refused_at_once(config: Path) -> bool:
    try:
        retrain_here(config)
    except NothingToDo as reason:
        return "another retraining is at work" in str(reason)
    return False


AS_A_JOB = """
import atexit, json, runpy, sys, psutil

def tell():
    imported = [name for name in ("ray", "torch") if name in sys.modules]
    print(json.dumps([imported, len(psutil.Process().children(recursive=True))]))

atexit.register(tell)
runpy.run_path("jobs/retrain.py", run_name="__main__")
"""


def ask_as_a_job(config: Path) -> tuple[int, list[Any]]:
    """jobs/retrain.py -> (exit code, [modules that it imported, processes that it left])."""
    done = subprocess.run(
        [sys.executable, "-c", AS_A_JOB, "--config", str(config)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        check=False,
    )
    assert "nothing to do" in done.stdout, done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def assert_nothing_is_done(config: Path) -> None:
    code, (imported, num_children) = ask_as_a_job(config)
    assert (code, imported, num_children) == (3, [], 0)


def assert_no_image_has_moved(before: str, after: str) -> None:
    """Between the manifests of two runs."""
    old, new = ({one.content_id: one.split for one in load_run(run).manifest.images} for run in (before, after))
    assert {content: new[content] for content in old} == old


@pytest.mark.usefixtures("ray_local")
def test_the_first_champion_is_made_and_then_there_is_nothing_to_do(
    write_config: WriteConfig, images: Path, tmp_path: Path
) -> None:
    """The story below has the same beginning; this is what every change is tested with."""
    config = write_config()
    first = retrain_here(config)
    assert first.outcome == "first"
    champion = load_champion(str(tmp_path / "runs" / "colours"))
    assert (champion.number, champion.export) == (1, first.challenger.export)
    assert_nothing_is_done(config)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local", "quick_leases")
def test_the_story_of_a_champion(write_config: WriteConfig, images: Path, tmp_path: Path) -> None:
    home = str(tmp_path / "runs" / "colours")

    # the first champion, which could not learn
    config = write_config()
    first = retrain_here(config)
    assert first.outcome == "first"
    assert first.prefix_images_computed == 300

    # no change
    assert_nothing_is_done(config)

    # 5 % new images: only these are computed, and a better challenger is promoted
    add_images(images, 100, 5)
    config = write_config(search_space={"lr": {"grid": [GOOD]}})
    second = retrain_here(config)
    assert second.outcome == "promoted", second.reasons
    assert second.prefix_images_computed == 15
    assert "the images have changed" in second.cause
    assert "search_space.lr.grid" in second.cause
    trials = load_run(second.run).trials
    assert [trial.recipe.lr for trial in trials[1:]] == [HOPELESS, GOOD], "the champion's configuration is the first"
    assert len(load_results(second.run)) == 3
    assert second.growth is not None
    assert second.growth.num_new == 15
    assert isinstance(second.drift, Drift), second.drift
    assert second.drift.num_new == second.growth.new_by_split["train"]
    assert_no_image_has_moved(first.run, second.run)
    assert (load_champion(home).number, load_champion(home).run) == (2, second.run)
    for name in ("retrain.html", "retrain.md", "retrain.json"):
        assert storage.exists(storage.join(second.run, name))

    # a worse one, whose labels are shuffled, is refused with the reason; of two at once one runs
    shuffle_training_labels(images)
    others: list[bool] = []
    at_once = threading.Thread(target=lambda: (time.sleep(2), others.append(refused_at_once(config))))
    at_once.start()
    third = retrain_here(config)
    at_once.join()
    assert others == [True]
    assert third.outcome == "refused"
    assert third.cause == "the images have changed"
    assert "not better with a confidence of 0.95" in third.reasons[0]
    assert any("recall of" in reason for reason in third.reasons)
    assert third.growth is not None
    assert third.growth.num_relabelled > 100
    assert third.drift == "0 new training images beside 175 old ones: too few to compare"
    assert load_champion(home).run == second.run
    assert_nothing_is_done(config)  # what was refused is not tried again

    # a rollback restores
    restored = rollback(home)
    assert restored.export == first.challenger.export == load_champion(home).export
    assert [champion.run for champion in history(home)] == [first.run, second.run, first.run]
    model = open_model(f"{home}/champion.json")
    assert [one.error for one in model([str(next((images / "red").iterdir()))])] == [None]


@pytest.mark.slow
def test_a_killed_retraining_goes_on_with_its_own_run_and_of_two_processes_one_retrains(
    write_config: WriteConfig, images: Path, tmp_path: Path
) -> None:
    home = tmp_path / "runs" / "colours"
    config = write_config(training={"epochs": 400, "batch_size": 16, "lr": GOOD, "augmentation": "none"})
    killed = start(config)
    try:
        wait_for(lambda: list(home.glob("*/trials/*/progress.json")), killed)
    finally:
        end_all(killed)
    (begun,) = [path.parent for path in home.glob("*/config.yaml")]
    assert not (begun / "DONE").exists()
    add_images(images, 100, 1)  # for the next retraining

    racers = [start(config), start(config)]
    outputs = [racer.communicate(timeout=300)[0] for racer in racers]
    codes = sorted(zip((racer.returncode for racer in racers), outputs, strict=True))
    assert [code for code, _ in codes] == [0, 3], codes
    assert "another retraining" in codes[1][1]
    assert "going on with the interrupted retraining" in codes[0][1]
    assert load_champion(str(home)).run == str(begun)
    assert load_run(str(begun)).is_done
    assert [path.parent for path in home.glob("*/config.yaml")] == [begun], "nothing was begun a second time"


def start(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tlray.cli", "retrain", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": os.getcwd()},
        start_new_session=True,
    )


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def end_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the driver and to the Ray that it has started."""
    import psutil

    everyone = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in reversed(everyone):
        try:
            one.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.communicate()
