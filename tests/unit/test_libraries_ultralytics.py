"""ultralytics' classifiers and backbones: sizes, blocks, cuts, and its .pt files."""

import os
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

if find_spec("ultralytics") is None:  # importing it would change the process for the tests of other files
    pytest.skip("needs the extra ultralytics", allow_module_level=True)

from tests.unit.library_models import FACTS, assert_splits, giga_multiply_adds, num_params, on_meta, untrained
from tlray.catalogue.libraries import ultralytics
from tlray.errors import BackboneError


@pytest.fixture(autouse=True)
def _settings_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package writes settings into the user's folder when it is imported first."""
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "settings"))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.mark.parametrize("name", ultralytics.names())
def test_a_model_has_the_stated_size_and_takes_images_of_its_size(name: str) -> None:
    model, logits = on_meta(ultralytics, name)
    assert tuple(logits.shape) == (2, 1000)
    facts = ultralytics.facts(name, None)
    assert facts.keys() <= FACTS
    assert num_params(model) == facts["num_params"]
    assert giga_multiply_adds(model, facts["input_size"]) == pytest.approx(facts["gflops"], abs=0.006)
    assert model.fc.in_features == facts["feature_width"]


def test_the_licence_binds() -> None:
    assert all(ultralytics.facts(name, None)["licence_binds"] for name in ultralytics.names())
    assert {ultralytics.facts(name, None)["licence"] for name in ultralytics.names()} == {"agpl-3.0"}


@pytest.mark.parametrize("name", ["yolov8n-cls", "yolov9t"])
def test_a_model_splits_between_its_blocks(name: str) -> None:
    backbone = untrained(ultralytics, name, size=64)
    assert backbone.head == ("fc",)
    assert len(backbone.blocks) == 10
    assert backbone.unused == ()
    assert_splits(backbone)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ultralytics.names()) - {"yolov8n-cls", "yolov9t"}))
def test_a_larger_model_splits_between_its_blocks(name: str) -> None:
    assert_splits(untrained(ultralytics, name, size=64))


def published(name: str, tmp_path: Path, model: torch.nn.Module) -> None:
    """A file as ultralytics releases it: the whole model, pickled, in half precision."""
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"model": model.half(), "ema": None, "train_args": {}}, folder / f"{name}.pt")
    model.float()


def test_published_classifier_weights_give_the_logits_of_ultralytics(tmp_path: Path) -> None:
    ClassificationModel = ultralytics._module("ultralytics.nn.tasks").ClassificationModel

    torch.manual_seed(0)
    theirs = ClassificationModel("yolov8n-cls.yaml", verbose=False).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.eps = 0.01  # not a tensor, and still part of what was published
    published("yolov8n-cls", tmp_path, theirs)
    ours = ultralytics.construct("yolov8n-cls", None, "pretrained", 224, {}, 1000).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        _, logits = theirs(images)
        torch.testing.assert_close(ours(images), logits)
        other = ultralytics.construct("yolov8n-cls", None, "pretrained", 224, {}, 3).eval()
        assert other(images).shape == (2, 3)
        torch.testing.assert_close(other.features(images), ours.features(images))


def test_published_detector_weights_give_the_maps_of_its_backbone(tmp_path: Path) -> None:
    DetectionModel = ultralytics._module("ultralytics.nn.tasks").DetectionModel

    torch.manual_seed(0)
    theirs = DetectionModel("yolov9t.yaml", verbose=False).eval()
    published("yolov9t", tmp_path, theirs)
    ours = ultralytics.construct("yolov9t", None, "pretrained", 224, {}, 3).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.features(images), theirs.model[:10](images))
        assert ours(images).shape == (2, 3)


class Payload:
    """Pickles to a call that makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    torch.save({"model": Payload(tmp_path / "was_here")}, tmp_path / "weights.pt")
    with pytest.raises(BackboneError, match=r"would run code .* save the tensors only"):
        ultralytics.read_checkpoint(tmp_path / "weights.pt")
    assert not (tmp_path / "was_here").exists()


def test_a_file_without_a_model_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "weights.pt")
    with pytest.raises(BackboneError, match="hold no model"):
        ultralytics.read_checkpoint(tmp_path / "weights.pt")


def test_only_classifiers_have_labels() -> None:
    assert ultralytics.labels("yolov8n-cls", None)[:2] == ("tench", "goldfish")
    with pytest.raises(BackboneError, match="a detector's"):
        ultralytics.labels("yolov9c", None)


def test_the_labels_stand_in_the_order_of_ultralytics() -> None:
    """Its own names are other words for the same classes: most are equal, and all in the same places."""
    from ultralytics.utils import ROOT, YAML

    theirs = YAML.load(ROOT / "cfg/datasets/ImageNet.yaml")["names"]
    pairs = list(zip(ultralytics.labels("yolov8n-cls", None), theirs.values(), strict=True))
    equal = sum(ours.lower() == name.lower() for ours, name in pairs)
    assert equal > 500
    assert sum(a.lower() == b.lower() for (a, _), (_, b) in pairwise(pairs)) < 10


def test_importing_the_package_leaves_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for module in [name for name in sys.modules if name.split(".")[0] == "ultralytics"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = (dict(os.environ), torch.save, Image.open, np.get_printoptions(), repr(torch.tensor([1.5])))
    ultralytics.construct("yolov9t", None, "none", 224, {}, 2)
    assert (dict(os.environ), torch.save, Image.open, np.get_printoptions(), repr(torch.tensor([1.5]))) == before
