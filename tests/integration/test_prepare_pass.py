"""Images are prepared once, by tasks on all nodes; a pass that was killed goes on with those that are missing."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tlray import storage
from tlray.config import RunConfig
from tlray.data.manifest import make_manifest
from tlray.distributed import prepare_pass
from tlray.distributed.prepare_pass import prepare_on_cluster
from tlray.errors import DataError
from tlray.planning.planner import plan_run

MakeConfig = Callable[..., RunConfig]

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

# Prepares eight images at a time, and kills itself when the second lot is done.
KILLED = """
import os, signal, sys
from tlray.config import RunConfig
from tlray.distributed import prepare_pass
from tlray.distributed.cluster import connect
prepare_pass.ENTRIES_AT_ONCE = 8
connect()
lots = []
def progress(done, total):
    lots.append(done)
    if len(lots) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
prepare_pass.prepare_on_cluster(RunConfig.model_validate_json(sys.argv[1]), progress)
"""


@pytest.fixture
def config(make_config: MakeConfig, image_folder: Path, tmp_path: Path) -> RunConfig:
    """The 36 small images and one that is none, to be prepared."""
    shutil.copytree(image_folder, tmp_path / "images")
    (tmp_path / "images" / "red" / "broken.jpg").write_text("<html>not found</html>")
    data = {"train": str(tmp_path / "images"), "prepare": "always", "val_fraction": 0.25, "test_fraction": 0.25}
    return make_config(data=data)


def prepare(config: RunConfig) -> list[tuple[int, int]]:
    """-> what the progress was told."""
    told: list[tuple[int, int]] = []
    prepare_on_cluster(config, lambda done, total: told.append((done, total)))
    return told


def test_a_killed_pass_goes_on_with_what_no_shard_holds_and_planning_reads_nothing_again(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, config.model_dump_json()], env=environment, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    monkeypatch.setattr(prepare_pass, "ENTRIES_AT_ONCE", 8)
    told = prepare(config)
    assert told[-1][0] == told[-1][1]
    assert 0 < told[-1][1] <= 37 - 16, "at least what two lots hold is there, and something was missing"
    assert prepare(config) == [(1, 1)], "all but the file that is no image"

    read: list[str] = []
    real = storage.read_bytes

    def seen(uri: str, *rest: str) -> bytes:
        read.extend([uri] if uri.endswith(".jpg") else [])
        return real(uri, *rest)

    monkeypatch.setattr(storage, "read_bytes", seen)
    planned = plan_run(config)
    assert [uri.rpartition("/")[2] for uri in read] == ["broken.jpg"]
    monkeypatch.undo()
    plain = make_manifest(config.data)
    assert [(i.uri, i.label, i.split, i.content_id) for i in planned.manifest.images] == [
        (i.uri, i.label, i.split, i.content_id) for i in plain.images
    ]
    assert all(image.shard for image in planned.manifest.images)
    assert planned.manifest.bad == plain.bad


def test_images_that_are_not_to_be_prepared_are_left_where_they_are(config: RunConfig, tmp_path: Path) -> None:
    assert prepare(config.model_copy(update={"data": config.data.model_copy(update={"prepare": "never"})})) == []
    assert not (tmp_path / "runs" / "images").exists()


def test_a_location_that_is_not_there_ends_the_pass_in_its_own_words(config: RunConfig, tmp_path: Path) -> None:
    missing = config.data.model_copy(update={"val": str(tmp_path / "nowhere")})
    with pytest.raises(DataError, match="nowhere"):
        prepare(config.model_copy(update={"data": missing}))
