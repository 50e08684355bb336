"""The ensemble of a trained run as one bundle: what it computes in every format, and what it says of itself.

Run: python -m pytest tests/unit/test_ensemble_bundle.py
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.special import softmax

import tlray
from tests.plans import empty_plan
from tlray.catalogue import Preprocessing
from tlray.config import RunConfig
from tlray.config.search_space import list_trials
from tlray.data.decode import decode
from tlray.data.manifest import make_manifest
from tlray.data.transforms import eval_transform, normalise
from tlray.errors import TlrayError
from tlray.export.formats import program_logits
from tlray.inference.classify import Classifier, find_model
from tlray.inference.predict import evaluate
from tlray.models.combined import Ensemble, Flipped, Tempered, View, common_preprocessing
from tlray.report import leaderboard_table, write_report
from tlray.runs import ensemble
from tlray.runs.board import load_leaderboard, write_leaderboard
from tlray.runs.bundle_sums import check_whole
from tlray.runs.combined_rows import EnsembleRow
from tlray.runs.plan import PlannedRun
from tlray.runs.predictions import load_probabilities
from tlray.runs.prepare import Run, load_run, prepare_run
from tlray.runs.trials import PREDICTION_FILES, read_recorded, write_trial_result
from tlray.training.run_images import run_images
from tlray.training.trial import load_trained, run_trial
from tlray.training.worker import local_worker
from tlray.workflows.exports import export_best

PLAN = empty_plan(name="colours", num_classes=3)
CENTER = Preprocessing(
    input_size=(224, 224),
    resize=256,
    crop_mode="center",
    interpolation="bilinear",
    mean=(0.5, 0.4, 0.3),
    std=(0.2,) * 3,
)


@pytest.fixture(scope="module")
def run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run of a baseline and four trials of two networks with other input sizes, all trained and exported.

    Which trials are in the ensemble is no matter here: three of the four, whatever they have learned.
    """
    folder = tmp_path_factory.mktemp("ensemble")
    networks = [
        {"id": "timm/test_resnet", "weights": "none", "input_size": 32},
        {"id": "timm/test_efficientnet", "weights": "none", "input_size": 48},
    ]
    config = RunConfig.model_validate(
        {
            "name": "colours",
            "storage": str(folder),
            "data": {"train": str(image_folder), "val_fraction": 0.3, "test_fraction": 0.3},
            "backbones": networks,
            "strategies": ["full"],
            "search_space": {"lr": {"grid": [3e-3, 1e-2]}},
            "training": {"epochs": 5, "batch_size": 4, "augmentation": "none"},
            "baseline": {"backbone": networks[0]},
            "export": {"ensemble": True},
        }
    )
    planned = PlannedRun(config, make_manifest(config.data), tuple(list_trials(config)), PLAN)
    run = prepare_run(planned, str(folder / "colours" / "1"))
    for trial in run.trials:
        run_trial(trial, run.uri, local_worker(), run_images(run.uri), lambda metrics: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble, "LEAST_IMAGES", 0)
        patch.setattr(ensemble, "MOST_ERRORS", 100)
        patch.setattr(ensemble, "select", lambda truth, most_members, start: {0: 1, 1: 2, 3: 1})
        export_best(run, write_leaderboard(run.uri), 1)
        yield run


@pytest.fixture(scope="module")
def row(run: Run) -> EnsembleRow:
    found = load_leaderboard(run.uri).ensemble
    assert found is not None
    return found


@pytest.fixture(scope="module")
def bundle(run: Run) -> Path:
    return Path(run.uri, "exports", "ensemble")


def expected_logits(run: Run, row: EnsembleRow, uri: str) -> np.ndarray:
    """The members as they were trained, each with its own preprocessing; their mean, and its temperature."""
    total = torch.zeros(())
    pixels = torch.from_numpy(decode(Path(uri).read_bytes())).permute(2, 0, 1)
    for member in row.members:
        trial = next(trial for trial in run.trials if trial.trial_id == member.trial_id)
        backbone = load_trained(trial, run.uri, 3)
        images = normalise(eval_transform(pixels, backbone.preprocessing)[None], backbone.preprocessing)
        with torch.no_grad():
            total = total + member.weight * torch.softmax(backbone.model(images) / member.temperature, dim=1)[0]
    return (total.log() / row.calibration.temperature).numpy()


def test_the_leaderboards_ensemble_is_the_mean_of_its_members_predictions(run: Run, row: EnsembleRow) -> None:
    assert sum(member.weight for member in row.members) == pytest.approx(1)
    assert all(member.temperature != 1 for member in row.members)
    assert len({member.trial_id for member in row.members}) == len(row.members) == 3
    mean = 0.0
    for member in row.members:
        recorded = read_recorded(run.uri, member.trial_id)
        assert recorded is not None
        predicted = load_probabilities(run.uri, recorded, "test")
        assert predicted is not None
        mean = mean + member.weight * softmax(predicted.logs / member.temperature, axis=1)
    assert row.test_accuracy == pytest.approx((np.asarray(mean).argmax(axis=1) == predicted.labels).mean())
    champion = load_leaderboard(run.uri).champion
    assert champion is not None
    assert row.gain_over_best == pytest.approx(row.test_accuracy - (champion.test_accuracy or 0))


def test_every_format_of_the_bundle_gives_the_mean_of_the_members(run: Run, row: EnsembleRow, bundle: Path) -> None:
    check_whole(str(bundle))
    model = tlray.load(str(bundle))
    common = model.preprocessing
    paths = [image.uri for image in run.manifest.split("test")[:5]]
    pixels = [torch.from_numpy(decode(Path(path).read_bytes())).permute(2, 0, 1) for path in paths]
    images = normalise(torch.stack([eval_transform(one, common) for one in pixels]), common)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    session = onnxruntime.InferenceSession(bundle / "model.onnx")
    found = {
        "load": np.stack([scored.logits.numpy() for scored in model.score(paths) if scored.logits is not None]),
        "onnx": session.run(["logits"], {"images": images.numpy()})[0],
        "pt2": program_logits(bundle / "model.pt2")(images).detach().numpy(),
    }
    for name in ("onnx", "pt2"):
        np.testing.assert_allclose(found[name], found["load"], atol=1e-4, err_msg=name)
    expected = torch.from_numpy(np.stack([expected_logits(run, row, path) for path in paths])).softmax(dim=1)
    got = torch.from_numpy(found["load"]).softmax(dim=1)
    assert float((got - expected).abs().max()) < 0.05  # inputs that the graph resizes from another size
    assert (got.argmax(dim=1) == expected.argmax(dim=1)).float().mean() >= 0.8


def test_the_bundle_predicts_evaluates_and_classifies_many_as_other_bundles_do(
    run: Run, row: EnsembleRow, bundle: Path, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    uris = [image.uri for image in run.manifest.split("test")]
    for image in run.manifest.split("test"):
        path = tmp_path / run.manifest.classes[image.label] / Path(image.uri).name
        path.parent.mkdir(exist_ok=True)
        shutil.copy(image.uri, path)
    assert evaluate(str(bundle), str(tmp_path)).accuracy == pytest.approx(row.test_accuracy, abs=0.1)
    files = pa.table({"uri": uris, "version": [""] * len(uris), "error": pa.array([None] * len(uris), pa.string())})
    part = pq.read_table(pa.BufferReader(Classifier(find_model(str(bundle)), "cpu").classify(files, num_threads=2)))
    one_by_one = tlray.load(str(bundle))(uris)
    np.testing.assert_allclose(
        np.stack(part["probabilities"].to_pylist()), [one.probabilities for one in one_by_one], atol=1e-4
    )


def test_the_bundle_names_its_members_its_cost_and_its_gain(row: EnsembleRow, bundle: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    assert [member["trial_id"] for member in config["members"]] == [member.trial_id for member in row.members]
    assert config["backbone"] is None
    assert config["temperature"] == row.calibration.temperature
    card = (bundle / "MODEL_CARD.md").read_text()
    assert f"An image costs {len(row.members)} forward passes" in card
    assert "expected calibration error" in card
    metrics = json.loads((bundle / "metrics.json").read_text())
    assert metrics["calibration"] == row.calibration.model_dump()
    assert 0 <= metrics["view_difference"] < 0.05


def test_a_whole_bundle_of_the_same_ensemble_is_not_made_again(run: Run, bundle: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in bundle.iterdir()}
    exports = export_best(load_run(run.uri), write_leaderboard(run.uri), 1)
    assert exports[1] == str(bundle)
    assert {path: path.stat().st_mtime_ns for path in bundle.iterdir()} == before


def test_the_exported_trials_logits_are_divided_by_its_temperature(run: Run) -> None:
    champion = load_leaderboard(run.uri).champion
    assert champion is not None
    single = next(Path(run.uri, "exports").glob("1-*"))
    calibration = json.loads((single / "metrics.json").read_text())["calibration"]
    image = run.manifest.split("test")[0]
    backbone = load_trained(next(t for t in run.trials if t.trial_id == champion.trial_id), run.uri, 3)
    pixels = torch.from_numpy(decode(Path(image.uri).read_bytes())).permute(2, 0, 1)
    inputs = normalise(eval_transform(pixels, backbone.preprocessing)[None], backbone.preprocessing)
    with torch.no_grad():
        expected = (backbone.model(inputs) / calibration["temperature"]).numpy()
    assert calibration["temperature"] != 1
    session = onnxruntime.InferenceSession(single / "model.onnx")
    np.testing.assert_allclose(session.run(None, {"images": inputs.numpy()})[0], expected, atol=1e-4)
    (scored,) = tlray.load(str(single)).score([image.uri])
    assert scored.logits is not None
    np.testing.assert_allclose(scored.logits.numpy(), expected[0], atol=1e-4)


def test_an_export_that_averages_over_the_mirror_image_does_so_in_every_format(run: Run, tmp_path: Path) -> None:
    flipping = load_run(str(shutil.copytree(run.uri, tmp_path / "colours" / "1")))
    export = flipping.config.export.model_copy(update={"ensemble": False, "tta": "flip"})
    flipping = dataclasses.replace(flipping, config=flipping.config.model_copy(update={"export": export}))
    (single,) = export_best(flipping, write_leaderboard(flipping.uri), 1)
    plain = next(Path(run.uri, "exports").glob("1-*"))
    uri = run.manifest.split("test")[0].uri
    ((by_bundle,), (by_option,)) = (tlray.load(single)(uri), tlray.load(str(plain), tta="flip")(uri))
    pixels = torch.from_numpy(decode(Path(uri).read_bytes())).permute(2, 0, 1)
    model = tlray.load(str(plain))
    inputs = normalise(eval_transform(pixels, model.preprocessing)[None], model.preprocessing)
    temperature = json.loads(Path(single, "config.json").read_text())["temperature"]
    with torch.no_grad():
        views = [(model.module(view) * temperature).softmax(dim=1) for view in (inputs, inputs.flip(3))]
    expected = ((views[0] + views[1]) / 2).log().div(temperature).softmax(dim=1)[0].numpy()
    np.testing.assert_allclose(by_bundle.probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(by_option.probabilities, expected, atol=1e-5)
    session = onnxruntime.InferenceSession(Path(single, "model.onnx"))
    logits = torch.from_numpy(session.run(None, {"images": inputs.numpy()})[0])
    np.testing.assert_allclose(logits.softmax(dim=1)[0].numpy(), expected, atol=1e-4)
    gain = json.loads(Path(single, "metrics.json").read_text())["tta"]
    assert gain["num_images"] == len(run.manifest.split("test"))
    assert gain["gain"] == pytest.approx(gain["accuracy_with"] - gain["accuracy_without"])
    assert gain["forwards"] == 2
    champion = load_leaderboard(flipping.uri).champion
    assert champion is not None
    assert gain["accuracy_without"] == pytest.approx(champion.test_accuracy)
    assert "2 forward passes an image" in Path(single, "MODEL_CARD.md").read_text()
    assert 'id="tta"' in Path(write_report(flipping.uri)).read_text()
    assert export_best(flipping, write_leaderboard(flipping.uri), 1) == (single,)


def test_table_and_report_show_the_ensemble_with_its_cost(run: Run, row: EnsembleRow) -> None:
    board = load_leaderboard(run.uri)
    table = leaderboard_table(board)
    assert list(table.columns[0].cells)[-1] == "+"
    assert f"{len(row.members)} forwards an image" in str(table.caption)
    page = Path(write_report(run.uri)).read_text()
    assert 'id="ensemble"' in page
    assert 'id="calibration"' in page


def test_without_the_setting_the_row_is_there_and_the_bundle_is_not(run: Run, tmp_path: Path) -> None:
    copied = shutil.copytree(run.uri, tmp_path / "colours" / "1")
    plain = load_run(str(copied))
    export = plain.config.export.model_copy(update={"ensemble": False})
    object.__setattr__(plain, "config", plain.config.model_copy(update={"export": export}))
    board = write_leaderboard(plain.uri)
    assert board.ensemble is not None
    assert len(export_best(plain, board, 1)) == 1
    assert not (copied / "exports" / "ensemble").exists(), "an ensemble of before is not the run's any more"


def test_a_run_of_an_earlier_version_has_no_ensemble_and_says_why(run: Run, tmp_path: Path) -> None:
    copied = shutil.copytree(run.uri, tmp_path / "colours" / "1")
    for trial in run.trials:
        recorded = read_recorded(str(copied), trial.trial_id)
        assert recorded is not None
        files = {name: sha for name, sha in recorded.files.items() if name != PREDICTION_FILES["val"]}
        write_trial_result(str(copied), recorded.result, files)
    board = write_leaderboard(str(copied))
    assert board.ensemble is None
    assert board.no_ensemble_reason is not None
    assert board.no_ensemble_reason.startswith("0 of 4 trials have kept their probabilities")
    assert "0 of 4 trials have kept" in Path(write_report(str(copied))).read_text()


def photo(height: int, width: int) -> torch.Tensor:
    """(3, H, W) uint8, smooth as photographs are."""
    rows, columns = torch.meshgrid(torch.linspace(0, 6, height), torch.linspace(0, 9, width), indexing="ij")
    waves = torch.stack([rows.sin() * columns.cos(), (rows + columns).sin(), (rows * columns / 3).cos()])
    return (127.5 + 120 * waves).to(torch.uint8)


@pytest.mark.parametrize(
    "other",
    [
        {"input_size": (224, 224), "resize": 236, "interpolation": "bicubic"},
        {"input_size": (160, 160), "resize": 160, "interpolation": "bicubic"},
        {"input_size": (299, 299), "resize": 342, "interpolation": "bilinear"},
        {"input_size": (224, 224), "resize": 256, "interpolation": "bilinear"},
    ],
)
def test_the_view_of_the_common_image_is_each_members_own_input(other: dict) -> None:
    first, second = CENTER, Preprocessing(crop_mode="center", mean=(0.1,) * 3, std=(0.3,) * 3, **other)
    common = common_preprocessing([first, second])
    image = photo(375, 500)
    shared = normalise(eval_transform(image, common)[None], common)
    for member in (first, second):
        expected = normalise(eval_transform(image, member)[None], member)
        found = View(member, common)(shared)
        assert found.shape == expected.shape
        apart = (found - expected).abs().mean() * member.std[0] * 255
        same = (member.resize, member.interpolation) == (common.resize, common.interpolation)
        assert float(apart) < (1e-3 if same else 3.0), "grey levels"


def test_members_whose_crops_are_no_parts_of_one_image_are_refused() -> None:
    squash = Preprocessing(
        input_size=(224, 224), resize=224, crop_mode="squash", interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    with pytest.raises(TlrayError, match="images cropped by center and squash cannot be made from one image"):
        common_preprocessing([CENTER, squash])


def test_flipping_averages_the_probabilities_of_both_views_and_a_temperature_divides() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 3)).eval()
    images = torch.randn(5, 3, 4, 4)
    mean = (network(images).softmax(dim=1) + network(images.flip(3)).softmax(dim=1)) / 2
    torch.testing.assert_close(Flipped(network)(images).exp(), mean)
    torch.testing.assert_close(Tempered(network, 2.5)(images), network(images) / 2.5)


def test_an_ensembles_weights_are_those_of_its_probabilities() -> None:
    torch.manual_seed(0)
    networks = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 3)).eval() for _ in range(2)]
    same = Preprocessing(
        input_size=(8, 8), resize=8, crop_mode="center", interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    images = torch.rand(4, 3, 8, 8)
    found = Ensemble(networks, [same, same], common_preprocessing([same, same]), [0.25, 0.75])(images)
    inputs = (images - 0.5) / 0.5
    mean = 0.25 * networks[0](inputs).softmax(dim=1) + 0.75 * networks[1](inputs).softmax(dim=1)
    torch.testing.assert_close(found.exp(), mean)
