"""Classifiers that scored every place of the maps, as SqueezeNet's: new ones pool first, and are linear."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

import tlray
from tlray.catalogue import Preprocessing
from tlray.config import BackboneConfig
from tlray.export.files import FORMAT_VERSION, BundleConfig
from tlray.models.backbone import build_backbone
from tlray.models.pooled_head import pool_first
from tlray.models.split import find_cut
from tlray.runs.bundle_sums import CHECKSUMS, CONFIG, WEIGHTS, checksum_lines

torch.set_num_threads(1)

SMALL = BackboneConfig(id="torchvision/squeezenet1_1", weights="none", input_size=64)
CLASSES = ("ant", "bee", "wasp")


def some_images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_squeezenet_averages_its_maps_and_then_is_linear() -> None:
    backbone = build_backbone(SMALL, 3)
    (name,) = backbone.head
    linear, model = backbone.model.get_submodule(name), backbone.model.eval()
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        expected = model.features(some_images()).mean(dim=(2, 3)) @ linear.weight.T + linear.bias
        torch.testing.assert_close(model(some_images()), expected)


def test_a_class_whose_logits_are_all_below_zero_still_learns() -> None:
    backbone = build_backbone(SMALL, 3)
    linear = backbone.model.get_submodule(backbone.head[0])
    nn.init.constant_(linear.bias, -100.0)
    backbone.model.eval()(some_images()).log_softmax(dim=1)[:, 1].sum().backward()
    assert bool((linear.bias.grad.abs() > 0).all())


def test_one_number_a_channel_crosses_the_last_cut() -> None:
    backbone = build_backbone(SMALL, 3)
    assert find_cut(backbone, len(backbone.blocks)).shapes == ((512,),)


def test_its_dropout_is_kept_behind_the_pooling() -> None:
    backbone = build_backbone(SMALL.model_copy(update={"options": {"dropout": 0.3}}), 3)
    dropouts = {name: module.p for name, module in backbone.model.named_modules() if isinstance(module, nn.Dropout)}
    assert dropouts == {"classifier.1.2": 0.3}
    backbone.model.train()
    assert not torch.equal(backbone.model(some_images()), backbone.model(some_images()))


@pytest.mark.parametrize("classes", [1000, 3])
def test_weights_with_the_librarys_classifier_load_without_it(classes: int, tmp_path: Path) -> None:
    published = torchvision.models.squeezenet1_1(weights=None, num_classes=classes)
    save_file(published.state_dict(), tmp_path / "w.safetensors")
    model = build_backbone(SMALL.model_copy(update={"weights": str(tmp_path / "w.safetensors")}), 3).model
    for name, tensor in published.features.state_dict().items():
        assert torch.equal(model.features.state_dict()[name], tensor)


def test_weights_of_a_trained_model_load_with_its_classifier(tmp_path: Path) -> None:
    trained = build_backbone(SMALL, 3, seed=1).model
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    again = build_backbone(SMALL.model_copy(update={"weights": str(tmp_path / "w.safetensors")}), 3, seed=2).model
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in trained.state_dict().items())


@pytest.mark.parametrize("as_published", [True, False])
def test_a_bundle_of_either_classifier_computes_what_it_was_exported_with(as_published: bool, tmp_path: Path) -> None:
    """Those of earlier versions kept SqueezeNet's convolution and ReLU."""
    backbone = build_backbone(SMALL, 3, seed=1, as_published=as_published)
    model = backbone.model.eval()
    assert isinstance(model.classifier[1], nn.Conv2d) == as_published
    save_file(model.state_dict(), tmp_path / WEIGHTS)
    config = BundleConfig(
        format_version=FORMAT_VERSION,
        tlray_version="0.1.0",
        libraries={},
        backbone=SMALL,
        initial_weights="none",
        strategy="full",
        params={},
        classes=CLASSES,
        preprocessing=backbone.preprocessing.to_dict(),
        input={},
        output={},
        tolerance={},
    )
    (tmp_path / CONFIG).write_text(json.dumps(config.model_dump(mode="json")))
    (tmp_path / CHECKSUMS).write_text(checksum_lines(tmp_path))
    loaded = tlray.load(str(tmp_path))
    assert Preprocessing.from_dict(config.preprocessing) == loaded.preprocessing
    with torch.no_grad():
        assert torch.equal(loaded.module(some_images()), model(some_images()))


class Made(nn.Module):
    """A stem, and a classifier by hand: images (B, 3, H, W) -> (B, 5)."""

    def __init__(self, *classifier: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.classifier = nn.Sequential(*classifier)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.stem(images)).view(images.size(0), -1)


def test_a_window_and_a_leaky_relu_behind_the_convolution_go_with_it() -> None:
    """As in DarkNet: the new head takes images of any size."""
    model = Made(nn.Conv2d(8, 5, 1), nn.LeakyReLU(0.1), nn.AvgPool2d(62))
    assert pool_first(model, ("classifier.0",), num_classes=5) == ("classifier.0.3",)
    linear = model.classifier[0][3]
    for size in (64, 40):
        images = torch.rand(2, 3, size, size)
        expected = model.stem(images).mean(dim=(2, 3)) @ linear.weight.T + linear.bias
        torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize(
    "classifier",
    [
        (nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 5, 1)),
        (nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 5, 1), nn.Flatten()),
        (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
        (nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1)),
    ],
)
def test_other_classifiers_stay_as_they_are(classifier: tuple[nn.Module, ...]) -> None:
    model = Made(*classifier)
    before = [type(module) for module in model.modules()]
    name = next(
        name
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None
        and name.startswith("classifier")
        and not isinstance(module, nn.BatchNorm2d)
    )
    assert pool_first(model, (name,), num_classes=5) == (name,)
    assert [type(module) for module in model.modules()] == before
