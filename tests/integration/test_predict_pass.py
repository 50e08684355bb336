"""Batch prediction on the cluster: killed at any moment and started again, every image is predicted once."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fake_bundle import write_board
from small_bundle import small_bundle

from tlray import storage
from tlray.cli import main
from tlray.distributed.predict_pass import predict_on_cluster
from tlray.errors import DataError, InputError, TlrayError
from tlray.export import load
from tlray.inference import parts
from tlray.inference.outlook import look_ahead
from tlray.inference.output import PredictionSummary

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

SIZES = {"FEWEST": 4, "MOST": 8, "ONE_IN": 4}
SMALL_PARTS = f"""
import os, runpy, signal, sys
from tlray.inference import parts
for name, number in {SIZES}.items():
    setattr(parts, name, number)
"""
KILLED_WITH_TWO_PARTS_DONE = f"""{SMALL_PARTS}
from tlray.distributed.predict_pass import predict_on_cluster
lots = []
def progress(done, total):
    lots.append(done)
    if len(lots) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
predict_on_cluster(sys.argv[1], [sys.argv[2]], sys.argv[3], progress)
"""
JOB = f"""{SMALL_PARTS}
runpy.run_path("jobs/predict.py", run_name="__main__")
"""
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in SIZES.items():
        monkeypatch.setattr(parts, name, number)


@pytest.fixture
def images(image_folder: Path, tmp_path: Path) -> Path:
    """The 36 small images and one that is none."""
    folder = Path(shutil.copytree(image_folder, tmp_path / "images"))
    (folder / "red" / "broken.jpg").write_text("<html>not found</html>")
    return folder


@pytest.fixture
def bundle(image_folder: Path) -> str:
    return str(small_bundle(image_folder).folder)


def predict(bundle: str, images: str | Path, output: str | Path) -> PredictionSummary:
    return predict_on_cluster(bundle, [str(images)], str(output), lambda done, total: None)


def rows_of(output: Path) -> list[dict[str, object]]:
    return [row for path in sorted(output.glob("predictions/*.parquet")) for row in pq.read_table(path).to_pylist()]


def modified(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in output.glob("predictions/*.parquet")}


def python(program: str, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(
        command, env=inherited | environment, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def objects(uri: str) -> dict[str, str]:
    """Name and version of each part."""
    return {info.uri: info.version for info in storage.list_files(f"{uri}/predictions")}


def rows_at(uri: str) -> list[dict[str, Any]]:
    rows = []
    for part in objects(uri):
        with storage.open_file(part) as file:
            rows += pq.read_table(file).to_pylist()
    return rows


def test_a_killed_prediction_goes_on_with_what_is_missing_and_every_image_is_predicted_once(
    bundle: str, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    killed = python(KILLED_WITH_TWO_PARTS_DONE, bundle, str(images), str(output), environment={})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (output / "summary.json").exists()
    before, known = modified(output), rows_of(output)
    assert 8 <= len(known) < 37, "at least what two parts hold is there, and something was missing"

    summary = predict(bundle, images, output)
    assert 0 < summary.images_computed <= 37 - len(known), "a worker may have outlived its driver by a part"
    assert before.items() <= modified(output).items(), "finished parts are as they were"
    paths = [str(path) for path in sorted(images.glob("*/*.jpg"))]
    assert sorted(row["uri"] for row in rows_of(output)) == paths
    expected = {path: one.label for path, one in zip(paths, load(bundle)(paths), strict=True)}
    assert {row["uri"]: row["class"] for row in rows_of(output)} == expected
    assert (summary.num_images, summary.num_bad) == (37, 1)
    (bad,) = [json.loads(line) for line in (output / "bad_images.jsonl").read_text().splitlines()]
    assert bad["uri"] == str(images / "red" / "broken.jpg")
    assert "web page" in bad["reason"]


@pytest.mark.slow
def test_a_killed_job_on_object_storage_goes_on_and_every_object_is_predicted_once(
    bundle: str, images: Path, s3: Any
) -> None:
    run, prefix, output = f"{s3.uri}/run", f"{s3.uri}/images", f"{s3.uri}/output"
    storage.upload_folder(Path(bundle), f"{run}/exports/1-best")
    write_board(run)
    storage.upload_folder(images, prefix)
    killed = python(KILLED_WITH_TWO_PARTS_DONE, run, prefix, output, environment=s3.environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before, known = objects(output), rows_at(output)
    assert 8 <= len(known) < 37

    job = python(JOB, "--model", run, "--images", prefix, "--output", output, "--json", environment=s3.environment)
    assert job.returncode == 0, job.stderr
    summary = json.loads(job.stdout)
    assert 0 < summary["images_computed"] <= 37 - len(known)
    assert before.items() <= objects(output).items()
    paths = sorted(images.glob("*/*.jpg"))
    labels = [one.label for one in load(bundle)(paths)]
    expected = {f"{prefix}/{path.relative_to(images)}": label for path, label in zip(paths, labels, strict=True)}
    assert sorted(row["uri"] for row in rows_at(output)) == sorted(expected)
    assert {row["uri"]: row["class"] for row in rows_at(output)} == expected
    assert (summary["num_images"], summary["num_bad"]) == (37, 1)


def test_a_finished_prediction_is_not_computed_again(bundle: str, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    first = predict(bundle, images, output)
    before, written = modified(output), (output / "summary.json").read_bytes()
    again = predict(bundle, images, output)
    assert (first.images_computed, again.images_computed, again.num_images, again.num_bad) == (37, 0, 37, 1)
    assert modified(output) == before
    assert (output / "summary.json").read_bytes() == written


def test_images_that_come_go_or_change_are_recomputed_with_their_parts_and_others_are_not(
    bundle: str, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    first = predict(bundle, images, output)
    before = modified(output)
    shutil.copy(images / "red" / "00.jpg", images / "red" / "broken.jpg")
    (images / "red" / "11.jpg").unlink()
    second = predict(bundle, images, output)
    assert 0 < second.images_computed < first.num_images / 2
    assert second.parts_removed > 0
    assert set(before) & set(modified(output)), "most parts stay"
    assert all(modified(output)[name] == before[name] for name in set(before) & set(modified(output)))
    assert sorted(row["uri"] for row in rows_of(output)) == [str(path) for path in sorted(images.glob("*/*.jpg"))]
    assert second.num_bad == 0
    assert (output / "bad_images.jsonl").read_text() == ""


def test_a_dry_run_says_what_the_prediction_then_does_and_writes_nothing(
    bundle: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    outlook = look_ahead(bundle, [str(images)], str(output))
    assert not output.exists()
    first = predict(bundle, images, output)
    assert (outlook.num_images, outlook.images_to_compute) == (37, 37)
    assert (outlook.num_parts, outlook.parts_to_compute) == (first.num_parts, first.parts_computed)
    shutil.copy(images / "red" / "00.jpg", images / "red" / "broken.jpg")
    before = modified(output)
    with pytest.raises(SystemExit) as leaving:
        main(["predict", bundle, str(images), "--output", str(output), "--dry-run", "--json"])
    assert leaving.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert modified(output) == before
    second = predict(bundle, images, output)
    computed = (second.images_computed, second.parts_computed, second.parts_removed)
    assert (said["images_to_compute"], said["parts_to_compute"], said["parts_to_remove"]) == computed
    with pytest.raises(InputError, match="holds predictions of other images"):
        look_ahead(bundle, [str(images / "red")], str(output))


def test_what_cannot_be_meant_is_refused_before_anything_is_written(bundle: str, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with pytest.raises(DataError, match="nowhere does not exist"):
        predict(bundle, tmp_path / "nowhere", output)
    with pytest.raises(DataError, match="is a folder without exports"):
        predict(str(tmp_path), images, output)
    with pytest.raises(InputError, match="lies below the images in"):
        predict(bundle, images, images / "output")
    assert not output.exists()
    predict(bundle, images / "blue", output)
    with pytest.raises(InputError, match="holds predictions of other images"):
        predict(bundle, images / "red", output)
    assert len(rows_of(output)) == 12


def test_a_prediction_without_a_readable_image_fails_and_says_where_the_reasons_are(
    bundle: str, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.jpg").write_text("no image")
    with pytest.raises(TlrayError, match=r"none of the 3 images can be read: see .*bad_images.jsonl"):
        predict(bundle, tmp_path / "images", tmp_path / "output")
    assert len((tmp_path / "output" / "bad_images.jsonl").read_text().splitlines()) == 3
