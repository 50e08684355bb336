"""Twenty kills at random moments: whole runs and single workers, in the activation pass and while trials read.

After each kill every visible shard is whole, what was finished is not computed again, and in the end the rows are those
of a run that nobody disturbed. Takes about twenty minutes.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image

from tlray.runs.trials import load_results

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]

NUM_KILLS = 20
IMAGES = 400
NETWORK = {"id": "timm/test_resnet", "weights": "none", "input_size": 96}
TASKS = ("chunk_task", "probe_group_task", "ImplicitFunc")
LONGEST_WAIT = 20  # seconds of work before a kill


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        path = tmp_path / "images" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (120, 120, 3), dtype=np.uint8)
        pixels[..., number % 2] //= 2
        Image.fromarray(pixels).save(path)
    return tmp_path


def write_config(folder: Path, name: str) -> Path:
    config = {
        "name": name,
        "storage": str(folder / name),
        "data": {"train": str(folder / "images")},
        "backbones": [NETWORK],
        "strategies": [
            {"strategy": "linear_probe", "search_space": {"lr": {"grid": [0.001, 0.01]}}},
            {"strategy": "partial", "trainable_blocks": 2},
        ],
        "training": {"epochs": 10, "batch_size": 8, "augmentation": "light", "views": 4},
        "activations": {"materialise": "always", "images_per_shard": 8},
        "baseline": {"backbone": {**NETWORK, "input_size": 32}, "training": {"epochs": 1}},
        "sweep": {"scheduler": "fifo", "max_failures": 10},
        "export": {"top_k": 0},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tlray.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": os.getcwd()},
    )


def kill_all(process: subprocess.Popen[str]) -> str:
    """SIGKILL to the driver and everything that it has started -> what it had printed."""
    victims = [process, *psutil.Process(process.pid).children(recursive=True)]
    for victim in victims:
        try:
            victim.send_signal(signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return process.communicate()[0]


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that compute activations or read them just now."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(task in " ".join(child.cmdline()) for task in TASKS):
                    found.append(child)
    return found


def wait_for_work(process: subprocess.Popen[str], seconds: float) -> None:
    """Until the run has a worker, and `seconds` longer; the run may end meanwhile."""
    while process.poll() is None and not workers(process):
        time.sleep(0.05)
    moment = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < moment:
        time.sleep(0.02)


def kill_a_worker(process: subprocess.Popen[str]) -> bool:
    """SIGKILL to one of the workers; False when there is none just now."""
    for worker in workers(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
            return True
    return False


def visible(store: Path) -> dict[Path, dict]:
    """Every index entry, once its data file has been found to be what it says."""
    entries = {path: json.loads(path.read_text()) for path in store.glob("*/index/*.json")}
    for path, entry in entries.items():
        data = (path.parent.parent / "shards" / entry["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], f"{path} names a corrupt shard"
    return entries


def forwards(entries: dict[Path, dict]) -> int:
    """Images through the prefix: two cuts come out of one forward, with shards of one name."""
    return sum({(path.name, _draw_of(path)): entry["rows"] for path, entry in entries.items()}.values())


def _draw_of(entry: Path) -> tuple[str, int]:
    spec = json.loads((entry.parent.parent / "spec.json").read_text())
    return spec["augmentation"], spec["view"]


def outcome(run_uri: str) -> dict[str, tuple]:
    curves = {}
    for row in load_results(run_uri):
        history = Path(run_uri, "trials", row.trial_id, "history.jsonl").read_text().splitlines()
        curve = [(epoch["train_loss"], epoch["val_loss"]) for epoch in map(json.loads, history)]
        curves[row.trial_id] = (row.status, row.test_accuracy, row.val_loss, row.prefix_images_computed, curve)
    return curves


def planned_work(output: str) -> Iterator[int]:
    for total in re.findall(r"frozen work: \d+ of (\d+) images", output):
        yield int(total)


def test_twenty_kills_corrupt_nothing_repeat_nothing_and_change_nothing(folder: Path) -> None:
    reference = start("run", str(write_config(folder, "undisturbed")))
    output = reference.communicate(timeout=600)[0]
    assert reference.returncode == 0, output
    expected = outcome(output.splitlines()[0].removeprefix("run folder: "))
    total = next(planned_work(output))

    randomness = random.Random(0)
    kills, rounds = 0, 0
    while kills < NUM_KILLS:
        rounds += 1
        name = f"disturbed{rounds}"
        process = start("run", str(write_config(folder, name)))
        assert process.stdout is not None
        run_uri = process.stdout.readline().strip().removeprefix("run folder: ")
        store = folder / name / "activations"
        before: dict[Path, dict] = {}
        while True:
            wait_for_work(process, randomness.uniform(0, LONGEST_WAIT))
            if process.poll() is not None:
                output = process.communicate()[0]
                assert process.returncode == 0, output
            elif kills % 2:
                kills += kill_a_worker(process)
                continue
            else:
                output = kill_all(process)
                kills += 1
            for announced in planned_work(output):
                assert announced == total - forwards(before), "finished shards were planned again"
            after = visible(store)
            assert {path: after[path] for path in before} == before, "a finished shard was replaced"
            before = after
            print(f"{kills} kills, {forwards(before)} of {total} images through the prefix", flush=True)
            if process.returncode == 0:
                break
            has_begun = Path(run_uri, "format").exists()
            process = start("resume", run_uri) if has_begun else start("run", str(folder / f"{name}.yaml"))
            first = process.stdout.readline() if process.stdout is not None else ""
            run_uri = first.strip().removeprefix("run folder: ")
        assert outcome(run_uri) == expected
        assert forwards(before) == total
    print(f"{kills} kills over {rounds} runs, {total} images through the prefix in each")
