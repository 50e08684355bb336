"""Batch prediction on the cluster: killed at any moment and started again, every image is predicted once."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_bundle import small_bundle

from tlray import storage
from tlray.cli import main
from tlray.distributed.predict_pass import predict_on_cluster
from tlray.errors import DataError, InputError, TlrayError
from tlray.export import load
from tlray.prediction import parts
from tlray.prediction.output import PredictionSummary

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

SIZES = {"FEWEST": 4, "MOST": 8, "ONE_IN": 4}
# Predicts a few images at a time, and kills itself when the second lot is done.
KILLED = f"""
import os, signal, sys
from tlray.distributed.predict_pass import predict_on_cluster
from tlray.prediction import parts
for name, number in {SIZES}.items():
    setattr(parts, name, number)
lots = []
def progress(done, total):
    lots.append(done)
    if len(lots) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
predict_on_cluster(sys.argv[1], [sys.argv[2]], sys.argv[3], progress)
"""


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


def test_a_killed_prediction_goes_on_with_what_is_missing_and_every_image_is_predicted_once(
    bundle: str, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", KILLED, bundle, str(images), str(output)]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (output / "summary.json").exists()
    before = modified(output)
    known = {row["uri"] for row in rows_of(output)}
    assert 8 <= len(known) < 37, "at least what two lots hold is there, and something was missing"

    summary = predict(bundle, images, output)
    assert summary.images_computed == 37 - len(known)
    assert before.items() <= modified(output).items(), "finished parts are as they were"
    rows = {row["uri"]: row for row in rows_of(output)}
    paths = [str(path) for path in sorted(images.glob("*/*.jpg"))]
    assert sorted(row["uri"] for row in rows_of(output)) == paths
    expected = {one.uri: one.label for one in load(bundle)(paths)}
    assert {uri: row["class"] for uri, row in rows.items()} == expected
    assert (summary.num_images, summary.num_bad) == (37, 1)
    (bad,) = [json.loads(line) for line in (output / "bad_images.jsonl").read_text().splitlines()]
    assert bad["uri"] == str(images / "red" / "broken.jpg")
    assert "web page" in bad["reason"]

    again = predict(bundle, images, output)
    assert (again.num_images, again.num_bad, again.images_computed) == (37, 1, 0)
    assert json.loads((output / "summary.json").read_text())["images_computed"] == summary.images_computed


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


def test_objects_are_predicted_from_one_bucket_to_another_location_by_the_command(
    bundle: str, image_folder: Path, s3, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.upload_folder(image_folder / "red", f"{s3.uri}/images")
    storage.upload_folder(Path(bundle), f"{s3.uri}/run/exports/1-best")
    main_exits_with_zero(["predict", f"{s3.uri}/run", f"{s3.uri}/images", "--output", f"{s3.uri}/output", "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert (summary["num_images"], summary["num_bad"]) == (12, 0)
    assert summary["model"] == f"{s3.uri}/run/exports/1-best"
    files = [info.uri for info in storage.list_files(f"{s3.uri}/output/predictions")]
    rows = []
    for uri in files:
        with storage.open_file(uri) as file:
            rows += pq.read_table(file).to_pylist()
    assert sorted(row["uri"] for row in rows) == [f"{s3.uri}/images/{number:02}.jpg" for number in range(12)]


def main_exits_with_zero(arguments: list[str]) -> None:
    try:
        main(arguments)
    except SystemExit as ended:
        assert not ended.code


def test_what_cannot_be_meant_is_refused_before_anything_is_written(bundle: str, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with pytest.raises(DataError, match="nowhere does not exist"):
        predict(bundle, tmp_path / "nowhere", output)
    with pytest.raises(DataError, match="neither an export bundle"):
        predict(str(tmp_path), images, output)
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
