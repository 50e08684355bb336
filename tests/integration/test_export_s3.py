"""Bundles, predictions and reports in object storage are those on local disk.

Run: python -m pytest tests/integration/test_export_s3.py
"""

import shutil

import pytest
import torch
from fake_bundle import write_board
from made_up_run import make_run
from small_bundle import BACKBONE, CLASSES, COUNTS, METRICS, small_bundle

import tlray
from tlray import storage
from tlray.errors import DataError
from tlray.export import bundle as bundle_module
from tlray.export import export_bundle
from tlray.export.of_run import bundles
from tlray.inference.predict import evaluate, predict
from tlray.report import write_report
from tlray.runs.bundle_sums import check_whole
from tlray.runs.trials import load_results

pytestmark = pytest.mark.s3


def test_a_bundle_in_a_bucket_loads_predicts_and_scores_like_the_local_one(s3, image_folder):
    local = small_bundle(image_folder).folder
    run, images = f"{s3.uri}/run", f"{s3.uri}/images"
    storage.upload_folder(local, f"{run}/exports/1-test_resnet")
    write_board(run)
    storage.upload_folder(image_folder, images)
    model = tlray.load(f"{run}/exports/1-test_resnet")
    assert model(f"{images}/red/00.jpg")[0].probabilities == model(image_folder / "red" / "00.jpg")[0].probabilities

    found = list(predict(run, [f"{images}/green", f"{images}/*/0[01].jpg"]))
    expected = [*(f"green/{i:02}" for i in range(12)), *(f"{name}/{i:02}" for name in CLASSES for i in (0, 1))]
    assert [p.uri for p in found] == [f"{images}/{name}.jpg" for name in expected]
    assert all(p.error is None for p in found)

    assert evaluate(run, images) == evaluate(str(local), str(image_folder))
    for missing, message in ((f"{images}/purple", "does not exist"), (f"{images}/*.gif", "no file matches")):
        with pytest.raises(DataError, match=message):
            predict(run, [missing])
    with pytest.raises(DataError, match="is a folder without exports"):
        predict(images, [f"{images}/red"])


def test_a_bundle_is_published_to_a_bucket_with_its_checksums_last(s3, image_folder, monkeypatch):
    small = small_bundle(image_folder)

    def copy_formats(model: object, images: object, folder: object, name: str) -> None:
        for file in ("model.onnx", "model.pt2"):  # exporting anew would take seconds and show nothing else
            shutil.copy(small.folder / file, f"{folder}/{file}")

    monkeypatch.setattr(bundle_module, "write_formats", copy_formats)
    written: list[str] = []
    write_text = storage.write_text
    monkeypatch.setattr(storage, "write_text", lambda uri, text: (written.append(uri), write_text(uri, text)))

    def export(checkpoint_sha256: str) -> str:
        return export_bundle(
            model=small.model,
            backbone=BACKBONE,
            classes=CLASSES,
            preprocessing=small.preprocessing,
            strategy="full",
            params={},
            metrics=METRICS,
            data_summary=COUNTS,
            samples=torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
            destination=f"{s3.uri}/run/exports/1-test_resnet/",
            checkpoint_sha256=checkpoint_sha256,
        )

    destination = export("a" * 64)
    assert destination == f"{s3.uri}/run/exports/1-test_resnet"
    assert written == [f"{destination}/SHA256SUMS"]
    assert len(list(storage.list_files(destination))) == 7
    assert tlray.load(destination).classes == CLASSES

    assert export("b" * 64) == destination
    assert tlray.load(destination).config.checkpoint_sha256 == "b" * 64
    check_whole(destination)
    on_its_way = written[1].rpartition("/")[0]
    assert written[1:] == [f"{on_its_way}/SHA256SUMS", f"{destination}/SHA256SUMS"], "the new one is whole first"
    assert list(storage.list_files(on_its_way)) == []
    assert bundles(f"{s3.uri}/run") == [destination]


def test_results_and_report_of_a_run_in_a_bucket_equal_the_local_ones(s3, tmp_path):
    make_run(str(tmp_path / "run"), failed=[2])
    make_run(f"{s3.uri}/run", failed=[2])
    assert load_results(f"{s3.uri}/run") == load_results(str(tmp_path / "run"))
    local = storage.read_text(write_report(str(tmp_path / "run")))
    remote = storage.read_text(write_report(f"{s3.uri}/run"))
    assert remote.replace(f"{s3.uri}/run", "RUN") == local.replace(str(tmp_path / "run"), "RUN")
