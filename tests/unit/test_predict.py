"""predict.py: which model and which images are meant, and scores against scikit-learn's.

Run: python -m pytest tests/unit/test_predict.py
"""

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import timm
from fake_bundle import fake_bundle, write_board
from safetensors.torch import save_file
from small_bundle import CLASSES, small_bundle

from tlray.data import inputs
from tlray.errors import BackboneError, DataError, InputError
from tlray.export import load
from tlray.inference.predict import evaluate, list_inputs, open_model, predict
from tlray.report import evaluation_table


@pytest.fixture(scope="module")
def bundle(image_folder) -> str:
    return str(small_bundle(image_folder).folder)


@pytest.fixture
def images(image_folder, tmp_path) -> Path:
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


def test_files_patterns_and_folders_are_classified_in_the_order_given(bundle, images):
    (images / ".hidden").mkdir()
    (images / ".hidden" / "x.jpg").write_bytes(b"")
    given = [str(images / "red" / "05.jpg"), str(images / "green" / "0[0-2].jpg"), str(images / "blue")]
    predictions = list(predict(bundle, given, batch_size=4, num_threads=2))
    expected = ["red/05", "green/00", "green/01", "green/02", *(f"blue/{i:02}" for i in range(12))]
    assert [p.uri for p in predictions] == [str(images / f"{name}.jpg") for name in expected]
    assert [p.label for p in predictions] == [p.label for p in load(bundle)([p.uri for p in predictions])]


def test_a_folder_is_searched_below_and_hidden_files_are_left_out(images):
    (images / "red" / ".DS_Store").write_bytes(b"")
    (images / "red" / "deep").mkdir()
    shutil.copy(images / "red" / "00.jpg", images / "red" / "deep" / "image.jpg")
    found = list_inputs([str(images / "red")])
    assert len(found) == 13
    assert str(images / "red" / "deep" / "image.jpg") in found
    assert list_inputs([str(images / "**" / "image.jpg")]) == [str(images / "red" / "deep" / "image.jpg")]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(images):
    odd = images / "photo[1].jpg"
    shutil.copy(images / "red" / "00.jpg", odd)
    assert list_inputs([str(odd)]) == [str(odd)]


@pytest.mark.parametrize(
    ("given", "message"),
    [("missing.jpg", "missing.jpg does not exist"), ("*.tiff", "no file matches"), ("empty", "holds no files")],
)
def test_an_input_that_names_nothing_is_an_error_before_the_first_prediction(bundle, images, given, message):
    (images / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        predict(bundle, [str(images / "red"), str(images / given)])


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("a/*.jpg", "a/x.jpg", True),
        ("a/*.jpg", "a/b/x.jpg", False),
        ("a/**/*.jpg", "a/b/c/x.jpg", True),
        ("a/**/*.jpg", "a/x.jpg", True),
        ("a/**", "a/b/x.jpg", True),
        ("a/img[0-9].jp?", "a/img7.jpg", True),
        ("a/img[0-9].jp?", "a/imgx.jpg", False),
        ("a/*", "b/x.jpg", False),
    ],
)
def test_patterns_of_objects_mean_what_they_mean_for_files(pattern, path, matches):
    assert inputs.matches(path.split("/"), pattern.split("/")) is matches


def test_a_bad_image_in_a_folder_is_a_row_with_its_reason(bundle, images):
    (images / "red" / "02.jpg").write_bytes((images / "red" / "02.jpg").read_bytes()[:300])
    errors = {p.uri: p.error for p in predict(bundle, [str(images / "red")]) if p.error}
    assert list(errors) == [str(images / "red" / "02.jpg")]


def test_a_run_folder_means_the_export_of_its_leaderboards_best_trial(bundle, tmp_path):
    write_board(str(tmp_path))
    for name in ("2-test_resnet", "10-test_resnet"):
        shutil.copytree(bundle, tmp_path / "exports" / name)
    (tmp_path / "exports" / "1-unfinished").mkdir()
    (tmp_path / "exports" / "1-unfinished" / "model.onnx").write_bytes(b"")
    fake_bundle(str(tmp_path / "exports" / "1-other"), "002-other-full")
    (tmp_path / "exports" / "10-test_resnet" / "model.safetensors").unlink()  # would be refused, were it taken
    assert open_model(str(tmp_path)).classes == CLASSES


def test_a_run_whose_exports_are_of_another_trial_than_its_best_is_refused(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "exports" / "1-test_resnet")
    with pytest.raises(DataError, match=r"has no leaderboard\.json that says which export is its best: `tlray report"):
        open_model(str(tmp_path))
    write_board(str(tmp_path), trial_id="007-test_resnet-full")
    with pytest.raises(DataError, match=r"007-test_resnet-full.* has no export \(.*is of 001-test_resnet-full\)"):
        open_model(str(tmp_path))
    shutil.rmtree(tmp_path / "exports")
    with pytest.raises(DataError, match=r"has no export \(.*holds no bundle\): `tlray export RUN` writes it"):
        open_model(str(tmp_path))


@pytest.mark.parametrize("name", ["SHA256SUMS", "config.json", "model.safetensors"])
def test_a_damaged_export_of_a_run_is_refused_by_name(bundle, tmp_path, name):
    write_board(str(tmp_path))
    folder = Path(shutil.copytree(bundle, tmp_path / "exports" / "1-test_resnet"))
    data = bytearray((folder / name).read_bytes())
    data[10] ^= 128
    (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=f"exports/1-test_resnet.*{name}"):
        open_model(str(tmp_path))


def test_a_folder_without_a_bundle_is_refused(tmp_path):
    with pytest.raises(DataError, match="is a folder without exports, and holds no SHA256SUMS: give an"):
        open_model(str(tmp_path))
    with pytest.raises(DataError, match="does not exist"):
        open_model("./no-such-folder")


def test_an_unknown_model_is_refused_with_near_misses():
    with pytest.raises(BackboneError, match="did you mean torchvision/mobilenet_v2"):
        open_model("torchvision/mobilenet_v22")


def test_weights_for_a_bundle_are_refused(bundle):
    with pytest.raises(InputError, match="brings its own"):
        open_model(bundle, weights="other.safetensors")


def test_a_backbones_own_classifier_predicts_its_own_labels(images, tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), weights)
    predictions = list(predict("timm/test_resnet", [str(images / "red" / "00.jpg")], weights=str(weights)))
    labels = open_model("timm/test_resnet", weights=str(weights)).classes
    assert len(labels) == 1000
    assert predictions[0].label in labels
    assert len(predictions[0].best) == 5


def test_scores_are_those_of_scikit_learn(bundle, images):
    evaluation = evaluate(bundle, str(images), batch_size=5)
    paths = sorted(images.glob("*/*.jpg"))
    predictions = load(bundle)([str(path) for path in paths])
    truth = [path.parent.name for path in paths]
    labels = [p.label for p in predictions]
    probabilities = np.array([p.probabilities for p in predictions])
    assert len(set(labels)) == 3, "a test with one predicted class would see little"
    assert evaluation.num_images == 36
    assert evaluation.accuracy == pytest.approx(sklearn.metrics.accuracy_score(truth, labels))
    assert evaluation.macro_f1 == pytest.approx(sklearn.metrics.f1_score(truth, labels, average="macro"))
    assert evaluation.loss == pytest.approx(sklearn.metrics.log_loss(truth, probabilities, labels=CLASSES), rel=1e-4)
    assert evaluation.top5_accuracy == 1.0
    assert evaluation.confusion == tuple(map(tuple, sklearn.metrics.confusion_matrix(truth, labels, labels=CLASSES)))
    recalls = sklearn.metrics.recall_score(truth, labels, labels=CLASSES, average=None)
    assert evaluation.recall == pytest.approx(dict(zip(CLASSES, recalls, strict=True)))
    assert evaluation.bad == ()
    assert evaluation_table(evaluation).row_count == 3


def test_unreadable_images_are_listed_and_in_no_score(bundle, images):
    (images / "red" / "04.jpg").write_bytes(b"no image")
    shutil.rmtree(images / "blue")
    evaluation = evaluate(bundle, str(images))
    assert evaluation.num_images == 23
    assert [(bad.uri, bool(bad.reason)) for bad in evaluation.bad] == [(str(images / "red" / "04.jpg"), True)]
    assert evaluation.recall["blue"] is None
    assert sum(map(sum, evaluation.confusion)) == 23


def test_a_folder_that_is_no_class_of_the_model_is_refused_with_the_nearest(bundle, images):
    (images / "red").rename(images / "redd")
    with pytest.raises(DataError, match="'redd' is none of the model's 3 classes; did you mean 'red'"):
        evaluate(bundle, str(images))


def test_of_a_folder_of_splits_the_test_split_is_scored_and_the_note_says_so(bundle, images, tmp_path):
    for split, first in (("train", 0), ("Validation", 4), ("test", 8)):
        for label in CLASSES:
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for path in sorted((images / label).iterdir())[first : first + 4]:
                shutil.copy(path, tmp_path / "set" / split / label / path.name)
    assert evaluate(bundle, str(tmp_path / "set")).confusion == evaluate(bundle, str(tmp_path / "set/test")).confusion
    [note] = evaluate(bundle, str(tmp_path / "set")).notes
    assert note.endswith("test/ is test, train/ is train; test is scored")
    shutil.rmtree(tmp_path / "set" / "test")
    [note] = evaluate(bundle, str(tmp_path / "set")).notes
    assert note.endswith("val is scored")
    assert evaluate(bundle, str(tmp_path / "set" / "train")).notes == ()


def test_a_folder_in_another_spelling_is_the_class_that_it_means(bundle, images):
    plain = evaluate(bundle, str(images))
    (images / "red").rename(images / "red\u3000")
    assert evaluate(bundle, str(images)).confusion == plain.confusion


def test_a_location_without_labelled_or_readable_images_is_refused(bundle, images, tmp_path):
    with pytest.raises(DataError, match="holds no class folders"):
        evaluate(bundle, str(images / "red"))
    with pytest.raises(DataError, match="nowhere does not exist"):
        evaluate(bundle, str(tmp_path / "nowhere"))
    (tmp_path / "bad" / "red").mkdir(parents=True)
    (tmp_path / "bad" / "red" / "x.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 1 images can be read"):
        evaluate(bundle, str(tmp_path / "bad"))


def test_a_table_a_tar_and_a_zip_file_are_scored_as_the_folder_is(bundle, images):
    files = sorted(images.rglob("*.jpg"))
    with tarfile.open(images.parent / "S.TAR", "w") as tar, zipfile.ZipFile(images.parent / "z.zip", "w") as archive:
        for number, path in enumerate(files):
            tar.add(path, f"{number:04}.jpg")
            label = tarfile.TarInfo(f"{number:04}.cls")
            label.size = len(path.parent.name)
            tar.addfile(label, io.BytesIO(path.parent.name.encode()))
            archive.write(path, f"{path.parent.name}/{path.name}")
    rows = [f"{path},{path.parent.name}\n" for path in files]
    (images.parent / "l.csv").write_text("uri,label\n" + "".join(rows))
    expected = evaluate(bundle, str(images))
    for name in ("S.TAR", "z.zip", "l.csv"):
        assert evaluate(bundle, str(images.parent / name)).confusion == expected.confusion
