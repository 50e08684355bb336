"""Backbones of both libraries: new heads, determinism, input sizes, and the libraries' own weights loading."""

from pathlib import Path
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from tlray.config import BackboneConfig
from tlray.errors import BackboneError
from tlray.models.backbone import build_backbone, load_classifier

torch.set_num_threads(1)


def untrained(id: str, num_classes: int = 7, *, input_size: int | None = None, seed: int = 0, **options: object):
    config = BackboneConfig(id=id, weights="none", input_size=input_size, options=options)
    return build_backbone(config, num_classes, seed=seed)


def logits(model: nn.Module, size: int) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)))


# every way in which torchvision's models hold their classifier, each once; regnet cannot be made on the meta device
TORCHVISION = ["alexnet", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5"]
TORCHVISION += ["mobilenet_v2", "mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_v2_t"]
TORCHVISION += ["vgg11", "vit_b_16", "convnext_tiny", "wide_resnet50_2", "vit_h_14.IMAGENET1K_SWAG_E2E_V1"]


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_torchvision_model_gets_as_many_outputs_as_there_are_classes(name: str) -> None:
    with torch.device("meta"):
        backbone = untrained(f"torchvision/{name}")
        size = backbone.preprocessing.input_size
        assert backbone.model.eval()(torch.empty(2, 3, *size)).shape == (2, 7)
    assert backbone.weights == "none"
    assert all(not name.startswith(("aux", "AuxLogits")) for name, _ in backbone.model.named_modules())


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist")),
        ("inception_resnet_v2", ("classif",)),
        ("mobilenetv3_small_050", ("classifier",)),
        ("nasnetalarge", ("last_linear",)),
        ("test_convnext", ("head.fc",)),
        ("vit_small_patch14_dinov2", ("head",)),  # published without a head
    ],
)
def test_a_timm_model_gets_as_many_outputs_as_there_are_classes(name: str, head: tuple[str, ...]) -> None:
    with torch.device("meta"):
        backbone = untrained(f"timm/{name}")
        assert backbone.model.eval()(torch.empty(2, 3, *backbone.preprocessing.input_size)).shape == (2, 7)
    assert backbone.head == head
    assert all(backbone.model.get_submodule(part).weight.shape[0] == 7 for part in head)


@pytest.mark.parametrize("id", ["torchvision/squeezenet1_1", "timm/test_vit"])
def test_equal_seeds_give_equal_models_and_other_seeds_others(id: str) -> None:
    first, second, other = (untrained(id, seed=seed).model.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_building_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    untrained("torchvision/squeezenet1_1")
    assert torch.equal(torch.rand(3), expected)


def test_heads_differ_with_the_seed_while_loaded_weights_do_not(tmp_path: Path) -> None:
    save_file(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "w.safetensors")
    config = BackboneConfig(id="torchvision/squeezenet1_1", weights=str(tmp_path / "w.safetensors"))
    one, two = (build_backbone(config, 2, seed=seed).model for seed in (1, 2))
    assert torch.equal(one.features[0].weight, two.features[0].weight)
    assert not torch.equal(one.classifier[1][3].weight, two.classifier[1][3].weight)


@pytest.mark.parametrize("id", ["timm/test_vit3", "timm/swin_tiny_patch4_window7_224", "torchvision/vit_b_16"])
def test_a_transformer_is_built_for_the_input_size_of_the_config(id: str) -> None:
    with torch.device("meta"):
        backbone = untrained(id, input_size=96)
    assert backbone.preprocessing.input_size == (96, 96)


def test_an_input_size_that_the_model_refuses_is_named_before_training() -> None:
    with pytest.raises(BackboneError, match="squeezenet1_0 does not take images of 16 x 16"):
        untrained("torchvision/squeezenet1_0", input_size=16)
    with pytest.raises(BackboneError, match="100"):
        untrained("torchvision/vit_b_16", input_size=100)


def test_options_reach_the_constructor_and_wrong_ones_are_named() -> None:
    assert untrained("timm/test_resnet", drop_rate=0.25).model.drop_rate == 0.25
    with pytest.raises(BackboneError, match=r"timm/test_resnet .*unexpected keyword argument 'no_such_option'"):
        untrained("timm/test_resnet", no_such_option=1)
    with pytest.raises(BackboneError, match=r"options\.num_classes is set by tlray"):
        build_backbone(BackboneConfig(id="timm/test_resnet", weights="none", options={"num_classes": 3}), 2)


def test_random_googlenet_does_not_transform_its_input() -> None:
    assert untrained("torchvision/googlenet", 2).model.transform_input is False


def test_a_model_that_cannot_be_traced_has_no_blocks_and_says_why() -> None:
    with torch.device("meta"):
        backbone = untrained("timm/gemma4_vit_167m", 3)
    assert backbone.blocks == ()
    assert backbone.blocks_error is not None
    assert "torch.fx cannot trace it" in backbone.blocks_error


def test_a_failed_download_names_the_backbone_and_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise URLError("no network here")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", no_network)
    for id in ("torchvision/squeezenet1_1", "timm/resnet10t"):
        with pytest.raises(BackboneError, match=rf"{id} cannot be downloaded .*no network here.*give weights:"):
            build_backbone(BackboneConfig(id=id), 2)


def test_an_architecture_without_published_weights_says_so() -> None:
    with pytest.raises(BackboneError, match=r"timm/resnetv2_152 has no published weights"):
        build_backbone(BackboneConfig(id="timm/resnetv2_152"), 2)


def test_pretrained_weights_come_through_torchvisions_own_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    published = torchvision.models.GoogLeNet(init_weights=False)  # with its auxiliary heads, as published
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: published.state_dict())
    backbone = build_backbone(BackboneConfig(id="torchvision/googlenet"), 2)
    assert backbone.weights == "IMAGENET1K_V1"
    assert torch.equal(backbone.model.inception5b.branch1.conv.weight, published.inception5b.branch1.conv.weight)
    assert backbone.model.fc.weight.shape == (2, 1024)
    assert backbone.model.transform_input is True
    assert backbone.unused == ()
    model, _, labels = load_classifier("torchvision/googlenet")
    published.transform_input = True
    assert torch.equal(logits(model, 64), logits(published, 64))
    assert len(labels) == 1000


def test_pretrained_vits_take_another_input_size(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8, "patch_size": 16}

    def tiny_vit(name: str, weights: object = None, progress: bool = True, **options: object) -> nn.Module:
        return torchvision.models.VisionTransformer(**small, **options)

    published = torchvision.models.VisionTransformer(image_size=224, **small)
    monkeypatch.setattr("torchvision.models.get_model", tiny_vit)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: published.state_dict())
    backbone = build_backbone(BackboneConfig(id="torchvision/vit_b_16", input_size=96), 2)
    assert backbone.model.encoder.pos_embedding.shape == (1, 37, 8)
    assert torch.equal(backbone.model.conv_proj.weight, published.conv_proj.weight)


def test_pretrained_weights_come_through_timms_own_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    published = timm.create_model("test_resnet", num_classes=1000)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: published.state_dict())
    backbone = build_backbone(BackboneConfig(id="timm/test_resnet"), 2)
    assert backbone.weights == "r160_in1k"
    assert torch.equal(backbone.model.conv1[0].weight, published.conv1[0].weight)
    model, _, labels = load_classifier("timm/test_resnet")
    assert torch.equal(logits(model, 64), logits(published, 64))
    assert len(labels) == 1000
    assert labels[0].startswith("tench")


def test_a_classifier_needs_weights_and_labels() -> None:
    with pytest.raises(BackboneError, match="random weights predict nothing"):
        load_classifier("torchvision/squeezenet1_1", "none")
    with pytest.raises(BackboneError, match="no labels are known"):
        load_classifier("timm/vit_small_patch14_dinov2")


def test_a_classifier_from_a_file_predicts_what_its_model_predicts(tmp_path: Path) -> None:
    published = torchvision.models.squeezenet1_1(weights=None)
    torch.save(published.state_dict(), tmp_path / "w.pth")
    model, preprocessing, labels = load_classifier("torchvision/squeezenet1_1", str(tmp_path / "w.pth"))
    assert torch.equal(logits(model, 64), logits(published, 64))
    assert labels == tuple(torchvision.models.SqueezeNet1_1_Weights.DEFAULT.meta["categories"])
    assert preprocessing.input_size == (224, 224)


@pytest.mark.parametrize("id", ["torchvision/squeezenet1_0", "timm/test_efficientnet", "timm/test_vit"])
def test_a_new_head_starts_small_whatever_its_library_would_draw(id: str) -> None:
    backbone = build_backbone(BackboneConfig(id=id, weights="none"), 2)
    for name in backbone.head:
        head = backbone.model.get_submodule(name)
        assert float(head.weight.detach().std()) == pytest.approx(0.01, rel=0.15)
        assert float(head.bias.detach().abs().max()) == 0
