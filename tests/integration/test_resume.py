"""A driver killed in mid-sweep, a driver asked to stop, and a sweep on S3: `tlray resume` ends where it would have."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tlray import storage
from tlray.runs.board import load_leaderboard
from tlray.runs.trials import load_results

pytestmark = pytest.mark.ray

NETWORK = {"id": "timm/test_resnet", "weights": "none", "input_size": 32}


def write_config(folder: Path, **fields: Any) -> Path:
    config = {
        "name": "resumed",
        "backbones": [NETWORK],
        "strategies": [{"strategy": "linear_probe", "solver": "gradient"}, "full"],
        "training": {"epochs": 4, "batch_size": 8, "augmentation": "standard"},
        "search_space": {"lr": {"grid": [0.001, 0.01]}},
        "baseline": {"backbone": NETWORK},
        "sweep": {"scheduler": "fifo"},
        "export": {"top_k": 0},
        "activations": {"materialise": "always", "cache": str(folder / "cache")},  # never as the clock has it
        **fields,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def start(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": os.getcwd(), **(env or {})}
    return subprocess.Popen(
        [sys.executable, "-m", "tlray.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def run_uri_in(first_line: str) -> str:
    assert first_line.startswith("run folder: "), first_line
    return first_line.removeprefix("run folder: ").strip()


def finish(process: subprocess.Popen[str]) -> list[str]:
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    return output.splitlines()


def until_trials_have_ended(run_uri: str, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(load_results(run_uri)) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the sweep did not get going"
        time.sleep(0.05)


def rows(run_uri: str) -> list[tuple[Any, ...]]:
    """The leaderboard without what depends on the clock."""
    return [
        (row.rank, row.trial_id, row.val_accuracy, row.val_loss, row.test_accuracy, row.gain, row.gain_low, row.epochs)
        for row in load_leaderboard(run_uri).rows
    ]


@pytest.fixture(scope="module")
def undisturbed(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The run folder of a sweep from a local folder to a local folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_config(folder, data={"train": str(image_folder)}, storage=str(folder / "runs"))
    return run_uri_in(finish(start("run", str(config)))[-1])


def test_a_killed_driver_resumes_to_the_leaderboard_of_an_undisturbed_run(
    image_folder: Path, tmp_path: Path, undisturbed: str
) -> None:
    config = write_config(tmp_path, data={"train": str(image_folder)}, storage=str(tmp_path / "runs"))
    process = start("run", str(config))
    assert process.stdout is not None
    run_uri = run_uri_in(process.stdout.readline())
    until_trials_have_ended(run_uri, 1, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    ended_before = {result.trial_id: result for result in load_results(run_uri)}
    assert len(ended_before) < 5
    assert not storage.exists(storage.join(run_uri, "DONE"))

    lines = finish(start("resume", run_uri))
    assert lines[0] == lines[-1] == f"run folder: {run_uri}"
    after = {result.trial_id: result for result in load_results(run_uri)}
    for trial_id, result in ended_before.items():
        assert after[trial_id] == result, "a finished trial ran again"
    assert rows(run_uri) == rows(undisturbed)
    assert storage.exists(storage.join(run_uri, "DONE"))


def test_sigterm_ends_a_run_with_130_and_names_the_way_to_go_on(image_folder: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, data={"train": str(image_folder)}, storage=str(tmp_path / "runs"))
    process = start("run", str(config), "training.epochs=200")
    assert process.stdout is not None
    run_uri = run_uri_in(process.stdout.readline())
    until_an_epoch_is_kept(run_uri, process)
    process.terminate()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert f"tlray resume {run_uri}" in output
    assert "Traceback" not in output


def until_an_epoch_is_kept(run_uri: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list(Path(run_uri).glob("trials/*/progress.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_local_folder_and_s3_give_the_same_leaderboard(
    image_folder: Path, tmp_path: Path, undisturbed: str, s3: Any
) -> None:
    for path in image_folder.rglob("*.jpg"):
        storage.write_bytes(storage.join(s3.uri, "images", str(path.relative_to(image_folder))), path.read_bytes())
    fields = {"data": {"train": f"{s3.uri}/images"}, "storage": f"{s3.uri}/runs", "export": {"top_k": 1}}
    process = start("run", str(write_config(tmp_path, **fields)), env=s3.environment)
    remote_uri = run_uri_in(finish(process)[-1])
    assert remote_uri.startswith("s3://")
    assert rows(remote_uri) == rows(undisturbed)
    bundle = next(info.uri for info in storage.list_files(f"{remote_uri}/exports") if info.uri.endswith("SHA256SUMS"))
    images = [str(path) for path in sorted(image_folder.rglob("*.jpg"))[:3]]
    predicting = start("predict", bundle.removesuffix("/SHA256SUMS"), *images, "--json", env=s3.environment)
    predictions = [json.loads(line) for line in finish(predicting)]
    assert [prediction["uri"] for prediction in predictions] == images
    assert {prediction["label"] for prediction in predictions} <= {path.name for path in image_folder.iterdir()}
