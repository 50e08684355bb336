"""A part of a batch prediction: what `tlray.load` says of its images, as a Parquet file."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_bundle import CLASSES, small_bundle

from tlray import storage
from tlray.data.inputs import stream_inputs
from tlray.errors import DataError, InputError, StorageError
from tlray.export import load
from tlray.inference.classify import Classifier, find_model
from tlray.inference.output import ModelFacts, PredictionOutput, PredictionSpec, part_bytes
from tlray.inference.parts import Listing, write_parts


@pytest.fixture
def facts(image_folder: Path) -> ModelFacts:
    return find_model(str(small_bundle(image_folder).folder))


@pytest.fixture
def images(image_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


def listing_of(images: Path, tmp_path: Path) -> Listing:
    return write_parts(stream_inputs([str(images)]), tmp_path / "images.parquet")


def test_probabilities_are_those_of_the_loaded_export_in_the_order_of_the_listing(
    facts: ModelFacts, images: Path, tmp_path: Path
) -> None:
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8))
    wide.save(images / "red" / "wide.png")
    listing = listing_of(images, tmp_path)
    data = Classifier(facts, "cpu").classify(listing.read(0), num_threads=3)
    table = pq.read_table(io.BytesIO(data))
    uris = [str(path) for path in sorted(images.glob("*/*"))]
    expected = load(facts.uri)(uris)
    assert table["uri"].to_pylist() == uris
    assert table["class"].to_pylist() == [one.label for one in expected]
    assert len(set(table["class"].to_pylist())) == 3
    np.testing.assert_allclose(table["probabilities"].to_pylist(), [p.probabilities for p in expected], atol=1e-4)
    np.testing.assert_allclose(table["confidence"], [p.confidence for p in expected], atol=1e-4)
    assert set(table["model_version"].to_pylist()) == {facts.version}
    assert json.loads(table.schema.metadata[b"tlray.classes"]) == list(CLASSES)


def test_images_that_cannot_be_read_are_rows_with_a_reason_and_the_others_keep_their_own_probabilities(
    facts: ModelFacts, images: Path, tmp_path: Path
) -> None:
    (images / "blue" / "03.jpg").write_bytes(b"<html>not found</html>")
    (images / "red" / "11.jpg").write_bytes((images / "red" / "11.jpg").read_bytes()[:200])
    listing = listing_of(images, tmp_path)
    (images / "green" / "00.jpg").unlink()
    (images / "green" / "01.jpg").write_bytes(b"another file")
    table = pq.read_table(io.BytesIO(Classifier(facts, "cpu").classify(listing.read(0), num_threads=2)))
    rows = {row["uri"].removeprefix(f"{images}/"): row for row in table.to_pylist()}
    errors = {name: row["error"] for name, row in rows.items() if row["error"] is not None}
    assert sorted(errors) == ["blue/03.jpg", "green/00.jpg", "green/01.jpg", "red/11.jpg"]
    assert "web page" in errors["blue/03.jpg"]
    assert "does not exist" in errors["green/00.jpg"]
    assert "has changed since it was listed" in errors["green/01.jpg"]
    for name in errors:
        assert (rows[name]["class"], rows[name]["confidence"], rows[name]["probabilities"]) == (None, None, None)
    good = [name for name in rows if name not in errors]
    expected = load(facts.uri)([str(images / name) for name in good])
    assert [rows[name]["class"] for name in good] == [one.label for one in expected]


def test_a_part_of_nothing_but_bad_images_is_written_too(facts: ModelFacts, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(b"no image")
    data = Classifier(facts, "cpu").classify(listing_of(folder, tmp_path).read(0), num_threads=1)
    table = pq.read_table(io.BytesIO(data))
    assert table["class"].to_pylist() == [None] * 3
    assert all(table["error"].to_pylist())


def test_an_export_that_was_replaced_since_the_prediction_began_is_refused(
    facts: ModelFacts, images: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(facts.uri, tmp_path / "export"))
    before = find_model(str(copy))
    assert before.version == facts.version
    (copy / "SHA256SUMS").write_text((copy / "SHA256SUMS").read_text() + "\n")
    with pytest.raises(DataError, match="has changed since the prediction began"):
        Classifier(before, "cpu")
    with pytest.raises(DataError, match="is a folder without exports"):
        find_model(str(images))


def test_a_server_that_gives_no_access_ends_the_part_instead_of_making_every_image_a_bad_one(
    facts: ModelFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(uri: str, version: str | None = None) -> bytes:
        raise StorageError(f"{uri}: access denied")

    files = [storage.FileInfo("s3://bucket/0.jpg", 1, 0.0, "v")]
    listing = write_parts(iter(files), tmp_path / "images.parquet")
    classifier = Classifier(facts, "cpu")
    monkeypatch.setattr(storage, "read_bytes", refuse)
    with pytest.raises(StorageError, match="access denied"):
        classifier.classify(listing.read(0), num_threads=1)


def test_a_folder_is_bound_to_one_model_and_to_the_images_locations(facts: ModelFacts, tmp_path: Path) -> None:
    output = PredictionOutput(str(tmp_path / "output"))
    spec = PredictionSpec(model=facts, images=("s3://bucket/a", "s3://bucket/b"))
    output.begin(spec)
    output.begin(spec.model_copy(update={"images": ("s3://bucket/b", "s3://bucket/a")}))
    with pytest.raises(InputError, match="predictions of other images, s3://bucket/a, s3://bucket/b: give another"):
        output.begin(spec.model_copy(update={"images": ("s3://bucket/c",)}))
    other = facts.model_copy(update={"version": "0" * 64})
    with pytest.raises(InputError, match=f"another model, .*version {facts.version[:12]}, now 000000000000"):
        output.begin(spec.model_copy(update={"model": other}))


def test_a_folder_on_object_storage_tells_what_is_done_and_collects_the_bad_images(facts: ModelFacts, s3: Any) -> None:
    output = PredictionOutput(f"{s3.uri}/output")
    assert output.parts_there() == set()
    assert output.summary() is None
    rows = np.full((2, len(CLASSES)), 1 / len(CLASSES), dtype=np.float32)
    for name, errors in (("a", [None, "no image"]), ("b", [None, None])):
        uris = pa.array([f"{name}0.jpg", f"{name}1.jpg"])
        storage.write_bytes(output.part(name), part_bytes(uris, errors, rows, facts))
    assert output.parts_there() == {"a", "b"}
    assert output.write_bad_images(["b", "a"]) == 1
    assert storage.read_text(output.bad_images) == '{"uri": "a1.jpg", "reason": "no image"}\n'
    output.remove(["a"])
    assert output.parts_there() == {"b"}
