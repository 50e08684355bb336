"""export/: what a bundle holds, that its formats agree, that it loads, and what is said when it does not.

Run: python -m pytest tests/unit/test_export.py
"""

import hashlib
import io
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from small_bundle import BACKBONE, CLASSES, COUNTS, METRICS, SmallBundle, small_bundle
from torch import nn

import tlray
from tlray.catalogue import Preprocessing
from tlray.config import BackboneConfig
from tlray.data.decode import decode
from tlray.data.transforms import eval_transform, normalise
from tlray.errors import DataError, TlrayError
from tlray.export import bundle as bundle_module
from tlray.export import export_bundle, load
from tlray.export.card import weights_licence
from tlray.models.backbone import build_backbone

FILES = ["MODEL_CARD.md", "SHA256SUMS", "config.json", "metrics.json", "model.onnx", "model.pt2", "model.safetensors"]


@pytest.fixture(scope="module")
def bundle(image_folder) -> SmallBundle:
    return small_bundle(image_folder)


@pytest.fixture
def copied(bundle, tmp_path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "copied"))


def test_a_bundle_has_its_seven_files_and_sha256sum_accepts_them(bundle):
    assert sorted(path.name for path in bundle.folder.iterdir()) == FILES
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=bundle.folder, check=True)


def test_metrics_state_the_scores_and_how_far_the_formats_agree(bundle):
    metrics = json.loads((bundle.folder / "metrics.json").read_text())
    agreement = metrics.pop("agreement")
    assert metrics == METRICS
    assert sorted(agreement["max_abs_difference"]) == ["model.onnx", "model.pt2", "model.safetensors"]
    assert max(agreement["max_abs_difference"].values()) <= agreement["allowed_difference"]


def test_config_says_how_to_rebuild_and_use_the_model(bundle):
    config = json.loads((bundle.folder / "config.json").read_text())
    assert config["backbone"] == {"id": "timm/test_resnet", "weights": "none", "input_size": 64, "options": {}}
    assert config["classes"] == list(CLASSES)
    assert Preprocessing.from_dict(config["preprocessing"]) == bundle.preprocessing
    assert config["libraries"]["timm"] == timm.__version__
    assert config["tolerance"] == {"absolute": 1e-4, "relative_to_largest_logit": 1e-4}


def test_a_loaded_model_is_the_exported_one_and_needs_no_network(bundle, monkeypatch):
    def no_network(*args: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", no_network)
    model = tlray.load(str(bundle.folder))
    assert model.classes == CLASSES
    assert model.preprocessing == bundle.preprocessing
    assert model.config is not None
    assert model.config.strategy == "full"
    assert not any(module.training for module in model.module.modules())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.module(images), bundle.model(images))


def test_importing_tlray_loads_neither_torch_nor_ray():
    script = "import sys, tlray; assert 'load' in tlray.__all__; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = tlray.lode  # type: ignore[attr-defined]


def test_an_image_in_any_form_gives_the_same_prediction(bundle, image_folder):
    model = load(str(bundle.folder))
    path = image_folder / "red" / "03.jpg"
    pixels = decode(path.read_bytes())
    forms = [str(path), path, path.read_bytes(), Image.open(path), pixels, torch.from_numpy(pixels).permute(2, 0, 1)]
    predictions = model(forms)
    assert len({prediction.probabilities for prediction in predictions}) == 1
    assert [prediction.uri for prediction in predictions] == [str(path), str(path), None, None, None, None]
    assert [model(form)[0].label for form in forms] == [predictions[0].label] * len(forms)


def test_predictions_are_the_softmax_of_the_models_logits_whatever_the_batch_size(bundle, image_folder):
    paths = sorted(image_folder.glob("*/*.jpg"))
    predictions = load(str(bundle.folder), batch_size=7, num_threads=3)([str(path) for path in paths])
    images = [Image.open(path).convert("RGB") for path in paths]
    pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]
    inputs = torch.stack([eval_transform(image, bundle.preprocessing) for image in pixels])
    with torch.no_grad():
        expected = bundle.model(normalise(inputs, bundle.preprocessing)).softmax(dim=1)
    assert [prediction.uri for prediction in predictions] == [str(path) for path in paths]
    assert torch.allclose(torch.tensor([p.probabilities for p in predictions]), expected, atol=1e-4)
    assert [p.label for p in predictions] == [CLASSES[place] for place in expected.argmax(dim=1)]
    assert len({p.label for p in predictions}) > 1, "the test would not see mixed-up images"


def test_an_image_that_cannot_be_read_is_a_prediction_with_a_reason_and_does_not_disturb_the_others(
    bundle, image_folder, tmp_path
):
    (tmp_path / "bad.jpg").write_bytes(b"GIF89a???")
    good = str(image_folder / "red" / "00.jpg")
    first, bad, missing, last = load(str(bundle.folder))([good, tmp_path / "bad.jpg", tmp_path / "no.jpg", good])
    assert first == last
    assert bad.error is not None
    assert (bad.label, bad.confidence, bad.probabilities, bad.uri) == (None, None, None, str(tmp_path / "bad.jpg"))
    assert missing.error is not None
    assert "no.jpg" in missing.error
    assert json.loads(json.dumps(bad.to_dict()))["error"] == bad.error


def test_a_prediction_as_json_lists_the_best_classes_first(bundle, image_folder):
    (prediction,) = load(str(bundle.folder))(image_folder / "red" / "00.jpg")
    document = json.loads(json.dumps(prediction.to_dict()))
    assert document["label"] == prediction.label == document["best"][0]["label"]
    probabilities = [entry["probability"] for entry in document["best"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_what_is_no_image_is_a_type_error_that_says_what_is_one(bundle):
    with pytest.raises(TypeError, match=r"ndarray of shape \(4, 4\) and dtype float64 is not an image: give a path"):
        load(str(bundle.folder))(np.zeros((4, 4)))


def test_the_weights_file_serves_as_weights_of_another_run(bundle):
    weights = str(bundle.folder / "model.safetensors")
    other = build_backbone(BackboneConfig(id="timm/test_resnet", weights=weights), num_classes=5)
    assert other.preprocessing == bundle.preprocessing
    trained, head = bundle.model.state_dict(), other.head[0]
    for name, tensor in other.model.state_dict().items():
        assert name.startswith(head) or torch.equal(tensor, trained[name])


def test_the_model_card_states_scores_data_limits_and_licence(bundle):
    card = (bundle.folder / "MODEL_CARD.md").read_text()
    for statement in (
        "| top-1 accuracy | 90.00 % | 85.00 % |",
        "reaches\n60.00 % on the same test images",
        "**+25.00 points**, with a 95 % confidence interval of\n[+11.00, +39.00]",
        "| green | 8 | 8 | 8 |",
        "| **all** | 60 | 60 | 60 |",
        "The test split has 60 images",
        "The classes are unbalanced: 40 training images of `blue`, 8 of `green`",
        "no pre-trained weights are part of this model",
        "| lr | 0.001 |",
    ):
        assert statement in card


def test_the_model_cards_snippets_run_and_agree(copied, image_folder, monkeypatch, capsys):
    shutil.copy(image_folder / "green" / "05.jpg", copied / "image.jpg")
    monkeypatch.chdir(copied)
    snippets = re.findall(r"```python\n(.*?)```", (copied / "MODEL_CARD.md").read_text(), re.DOTALL)
    assert len(snippets) == 2
    answers = []
    for snippet in snippets:
        exec(compile(snippet, "MODEL_CARD.md", "exec"), {})
        label, confidence = capsys.readouterr().out.split()
        answers.append((label, float(confidence)))
    (label, confidence), (onnx_label, onnx_confidence) = answers
    assert label == onnx_label
    assert confidence == pytest.approx(onnx_confidence, abs=0.05)  # Pillow and torchvision resize a little differently


@pytest.mark.parametrize(
    ("backbone", "weights", "statement"),
    [
        ("timm/resnet50.a1_in1k", "pretrained", "timm gives the licence of the pre-trained weights as: apache-2.0."),
        ("torchvision/mobilenet_v2", "pretrained", "torchvision states no licence for the pre-trained weights"),
        ("timm/resnet50", "s3://bucket/own.pth", "Training began with the file `s3://bucket/own.pth`"),
    ],
)
def test_the_licence_is_what_the_library_says_and_no_more(backbone, weights, statement):
    assert weights_licence(backbone, weights).startswith(statement)


def test_a_folder_that_is_no_bundle_is_refused_by_what_it_lacks(tmp_path):
    with pytest.raises(
        DataError, match=r"not an export bundle: it has no config\.json, model\.safetensors, SHA256SUMS"
    ):
        load(str(tmp_path))


def test_a_bundle_whose_weights_are_gone_is_refused_by_name(copied):
    (copied / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"not a whole export bundle: it has no model\.safetensors"):
        load(str(copied))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_changed_byte_is_found(copied, name):
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(DataError, match=f"{name} is corrupted"):
        load(str(copied))


def test_a_bundle_of_another_format_version_is_refused(copied):
    path = copied / "config.json"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 99'))
    sums = copied / "SHA256SUMS"
    sums.write_text(sums.read_text().replace(before, hashlib.sha256(path.read_bytes()).hexdigest()))
    with pytest.raises(DataError, match="format_version 99, this tlray reads 2"):
        load(str(copied))


def test_nothing_is_published_when_the_formats_disagree(bundle, tmp_path, monkeypatch):
    def disagree(*args: object) -> None:
        raise TlrayError("the formats disagree")

    monkeypatch.setattr(bundle_module, "write_formats", lambda *args: None)
    monkeypatch.setattr(bundle_module, "check_formats", disagree)
    destination = tmp_path / "exports" / "1-model"
    with pytest.raises(TlrayError, match="the formats disagree"):
        export_bundle(
            model=bundle.model,
            backbone=BACKBONE,
            classes=CLASSES,
            preprocessing=bundle.preprocessing,
            strategy="full",
            params={},
            metrics=METRICS,
            data_summary=COUNTS,
            samples=torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
            destination=str(destination),
        )
    assert not destination.exists()


def test_a_models_own_input_transformation_is_kept_in_its_options(bundle):
    model = nn.Flatten()
    model.transform_input = True  # type: ignore[assignment]
    backbone = BackboneConfig(id="torchvision/googlenet", weights="pretrained")
    config = bundle_module.bundled_backbone(model, backbone, bundle.preprocessing)
    assert config.options == {"transform_input": True}


def test_images_given_as_a_pil_image_are_turned_and_flattened_like_files(bundle):
    image = Image.new("RGBA", (80, 40), (255, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    model = load(str(bundle.folder))
    from_file, from_image = model([file.getvalue(), Image.open(file)])
    assert from_file.probabilities == from_image.probabilities
