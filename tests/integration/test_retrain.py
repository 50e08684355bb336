"""Retraining on a real Ray, from the first champion to the rollback."""

import io
import json
import os
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

from tlray import storage
from tlray.champion import load_champion
from tlray.config import RunConfig
from tlray.config_file import parse_config
from tlray.data.splits import position
from tlray.errors import NothingToDo
from tlray.predict import open_model
from tlray.prepare import load_run
from tlray.results import load_results
from tlray.retrain import claim
from tlray.retrain.flow import retrain
from tlray.retrain.record import Record

pytestmark = [pytest.mark.ray]

NETWORK = {"id": "timm/test_resnet", "weights": "none", "input_size": 32}
COLOURS = {"blue": (70, 90, 170), "green": (80, 160, 90), "red": (170, 80, 70)}
TEST_FRACTION = 0.3
HOPELESS, GOOD = 1e-7, 0.03  # rates of the head


def add_images(folder: Path, first: int, count: int) -> None:
    """`count` images of each class, from number `first` on."""
    for label, colour in COLOURS.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            noise = np.random.default_rng([number, *colour]).normal(0, 40, (32, 32, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(
                folder / label / f"{number:03}.png"
            )


def is_tested(path: Path) -> bool:
    import hashlib

    return position(0, hashlib.sha256(path.read_bytes()).hexdigest()) < TEST_FRACTION


def shuffle_training_labels(folder: Path) -> None:
    """Every image that is not tested on goes to the next class's folder."""
    names = list(COLOURS)
    moving = [path for path in sorted(folder.rglob("*.png")) if not is_tested(path)]
    for path in moving:
        following = names[(names.index(path.parent.name) + 1) % len(names)]
        path.rename(folder / following / f"moved-{path.parent.name}-{path.name}")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    add_images(tmp_path / "images", 0, 100)
    return tmp_path / "images"


@pytest.fixture
def write_config(images: Path, tmp_path: Path) -> Callable[..., Path]:
    def write(**fields: Any) -> Path:
        config = {
            "name": "colours",
            "storage": str(tmp_path / "runs"),
            "data": {"train": str(images), "val_fraction": 0.15, "test_fraction": TEST_FRACTION},
            "backbones": [NETWORK],
            "strategies": ["linear_probe"],
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


def load(path: Path) -> RunConfig:
    return parse_config(path.read_text())


def run_retrain(path: Path) -> Record:
    return retrain(load(path), Console())


def Console() -> Any:
    from rich.console import Console as RichConsole

    return RichConsole(file=io.StringIO())


def retrain_in_a_process(config: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """`tlray retrain`, and what of torch, Ray and children the process had at its end."""
    code = (
        "import sys, json, psutil\n"
        "from tlray.cli import main\n"
        "try:\n    main(['retrain', sys.argv[1]])\n"
        "finally:\n"
        "    found = [name for name in ('ray', 'torch') if name in sys.modules]\n"
        "    print(json.dumps([found, len(psutil.Process().children(recursive=True))]))\n"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(config)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        check=False,
    )
    return done, time.monotonic() - started


@pytest.mark.usefixtures("ray_local")
def test_story(
    write_config: Callable[..., Path], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "RENEW_SECONDS", 0.5)
    home = str(tmp_path / "runs" / "colours")
    t = time.monotonic()

    def lap(what):
        nonlocal t
        print(what, round(time.monotonic() - t, 1), flush=True)
        t = time.monotonic()

    config = write_config()
    first = run_retrain(config)
    lap("first")
    assert first.outcome == "first"
    assert load_champion(home).number == 1

    done, seconds = retrain_in_a_process(config)
    print(done, seconds)
    lap("unchanged")
    assert done.returncode == 3
    assert json.loads(done.stdout.splitlines()[-1]) == [[], 0]

    before = load_run(first.run).manifest
    add_images(images, 100, 5)
    config = write_config(search_space={"lr": {"grid": [GOOD]}})
    second = run_retrain(config)
    lap("second")
    print(second.model_dump_json(indent=1))
    print((Path(second.run) / "retrain.md").read_text())
    after = load_run(second.run).manifest
    assert second.outcome == "promoted"
    assert second.prefix_images_computed == 15

    shuffle_training_labels(images)
    errors = []

    def other():
        time.sleep(2)
        try:
            retrain(load(config), Console())
        except Exception as e:
            errors.append(e)

    th = threading.Thread(target=other)
    th.start()
    third = run_retrain(config)
    th.join()
    print(errors)
    lap("third")
    print((Path(third.run) / "retrain.md").read_text())
    assert third.outcome == "refused"
    assert load_champion(home).number == 2
    from typer.testing import CliRunner
    from tlray.cli import app

    r = CliRunner().invoke(app, ["promote", "--rollback", str(config)])
    print(r.output)
    r = CliRunner().invoke(app, ["promote", "--history", str(config)])
    print(r.output)
    assert load_champion(home).export == first.challenger.export
    lap("rollback")
