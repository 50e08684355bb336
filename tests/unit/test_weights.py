"""Weights files, good and bad, against models that hold the same weights."""

import os
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from tlray.catalogue import default_preprocessing
from tlray.config import BackboneConfig
from tlray.errors import BackboneError
from tlray.models.backbone import build_backbone, load_classifier
from tlray.models.weights.read import read_weights

torch.set_num_threads(1)

ID = "torchvision/shufflenet_v2_x0_5"
SHARED = Path(os.environ.get("TLRAY_SHARED", Path(__file__).parents[3] / "shared")) / "weights"
needs_real_weights = pytest.mark.skipif(not SHARED.is_dir(), reason="no real weights: set TLRAY_SHARED to their folder")


@pytest.fixture(scope="module")
def published() -> nn.Module:
    """A model with 1000 classes and arbitrary weights, as a library would publish it."""
    torch.manual_seed(1)
    return torchvision.models.shufflenet_v2_x0_5(weights=None)


def build(path: Path, num_classes: int = 2, id: str = ID, **options: object) -> nn.Module:
    return build_backbone(BackboneConfig(id=id, weights=str(path), options=options), num_classes).model


def assert_same_but_head(model: nn.Module, published: nn.Module) -> None:
    state, expected = model.state_dict(), published.state_dict()
    assert list(state) == list(expected)
    for key in state:
        if not key.startswith("fc."):
            assert torch.equal(state[key], expected[key])


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
def test_a_torch_file_is_unwrapped_and_its_other_sized_head_left_out(
    wrapper: str | None, published: nn.Module, tmp_path: Path
) -> None:
    state = {f"module.{key}": tensor for key, tensor in published.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pth")
    model = build(tmp_path / "w.pth")
    assert_same_but_head(model, published)
    assert model.fc.weight.shape[0] == 2


def test_a_head_of_the_same_size_is_loaded_and_half_a_head_is_not(published: nn.Module, tmp_path: Path) -> None:
    save_file(published.state_dict(), tmp_path / "whole.safetensors")
    assert torch.equal(build(tmp_path / "whole.safetensors", 1000).fc.weight, published.fc.weight)
    half = {key: tensor for key, tensor in published.state_dict().items() if key != "fc.bias"}
    save_file(half, tmp_path / "half.safetensors")
    model = build(tmp_path / "half.safetensors", 1000)
    assert not torch.equal(model.fc.weight, published.fc.weight)


def test_a_file_without_a_head_and_without_batch_counters_is_fine(tmp_path: Path) -> None:
    reference = torchvision.models.mnasnet0_5(weights=None)
    left_out = ("classifier", "num_batches_tracked")
    state = {k: v for k, v in reference.state_dict().items() if not k.startswith(left_out) and not k.endswith(left_out)}
    save_file(state, tmp_path / "w.safetensors")
    model = build(tmp_path / "w.safetensors", id="torchvision/mnasnet0_5")
    assert torch.equal(model.layers[0].weight, reference.layers[0].weight)


def test_missing_unexpected_and_misshapen_keys_are_listed(published: nn.Module, tmp_path: Path) -> None:
    state = published.state_dict()
    del state["conv1.0.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["conv5.1.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError) as caught:
        build(tmp_path / "w.safetensors")
    message = str(caught.value)
    assert "another architecture" in message
    assert "3 keys differ" in message
    assert "conv1.0.weight is missing" in message
    assert "extra.weight is unexpected" in message
    assert "conv5.1.bias is (3,) instead of (1024,)" in message


def test_weights_of_another_architecture_name_ten_keys_and_the_count(published: nn.Module, tmp_path: Path) -> None:
    torch.save(published.state_dict(), tmp_path / "w.pth")
    with pytest.raises(BackboneError, match="another architecture") as caught:
        build(tmp_path / "w.pth", id="torchvision/mobilenet_v2")
    assert str(caught.value).count(" is missing") == 5
    assert str(caught.value).count(" is unexpected") == 5
    assert "more" in str(caught.value)


def test_metadata_of_another_architecture_is_refused_by_name(published: nn.Module, tmp_path: Path) -> None:
    save_file(published.state_dict(), tmp_path / "w.safetensors", {"arch": "squeezenet1_0", "library": "torchvision"})
    with pytest.raises(BackboneError, match=r"another architecture: torchvision/squeezenet1_0"):
        build(tmp_path / "w.safetensors")


def test_metadata_says_how_images_are_prepared(published: nn.Module, tmp_path: Path) -> None:
    metadata = {"mean": "0.5,0.4,0.3", "std": "0.2,0.2,0.1", "input_size": "227", "interpolation": "bicubic"}
    save_file(published.state_dict(), tmp_path / "w.safetensors", metadata)
    spec = build_backbone(BackboneConfig(id=ID, weights=str(tmp_path / "w.safetensors")), 2).preprocessing
    assert (spec.mean, spec.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert (spec.input_size, spec.resize, spec.interpolation) == ((227, 227), 259, "bicubic")
    save_file(published.state_dict(), tmp_path / "w.safetensors", {"crop_pct": "0.9"})
    spec = build_backbone(BackboneConfig(id=ID, weights=str(tmp_path / "w.safetensors")), 2).preprocessing
    assert spec.resize == 248  # floor(224 / 0.9)
    assert spec.mean == default_preprocessing(ID).mean


@pytest.mark.parametrize(
    "metadata", [{"mean": "0.5"}, {"std": "a,b,c"}, {"input_size": "big"}, {"crop_pct": "-1"}, {"interpolation": "x"}]
)
def test_metadata_that_makes_no_sense_is_refused(metadata: dict, published: nn.Module, tmp_path: Path) -> None:
    save_file(published.state_dict(), tmp_path / "w.safetensors", metadata)
    with pytest.raises(BackboneError, match=f"metadata has {next(iter(metadata))}="):
        build(tmp_path / "w.safetensors")


def test_a_file_that_would_run_code_is_refused_with_the_remedy(published: nn.Module, tmp_path: Path) -> None:
    torch.save(published, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=r"would run code.*save_file"):
        build(tmp_path / "w.pth")
    (tmp_path / "p.pth").write_bytes(pickle.dumps(Path("x"), protocol=2))
    with pytest.raises(BackboneError, match="would run code"):
        build(tmp_path / "p.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.bin"])
@pytest.mark.parametrize("content", [b"", b"this is a text and holds no weights at all", b"\x80\x02."])
def test_a_file_that_is_no_weights_file_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BackboneError, match=r"not a whole (torch\.save|safetensors) file"):
        read_weights(str(tmp_path / name))


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_truncated_file_is_refused(name: str, published: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / name
    save = save_file if name.endswith("safetensors") else torch.save
    save(published.state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BackboneError, match="not a whole"):
        read_weights(str(path))


def test_a_torch_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "w.pt")
    with pytest.raises(BackboneError, match="holds no state dict"):
        read_weights(str(tmp_path / "w.pt"))


def test_a_missing_file_and_a_word_that_is_no_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"absent\.pth': no such file"):
        read_weights(str(tmp_path / "absent.pth"))
    with pytest.raises(BackboneError, match="a weights tag goes into the id"):
        read_weights("IMAGENET1K_V2")


def test_densenet_files_with_the_layers_former_names_load(tmp_path: Path) -> None:
    reference = torchvision.models.DenseNet(num_classes=1000)
    former = {
        k.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in k else k: v
        for k, v in reference.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in former
    torch.save(former, tmp_path / "w.pth")
    model = build(tmp_path / "w.pth", id="torchvision/densenet121")
    key = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(model.state_dict()[key], reference.state_dict()[key])


def test_googlenet_files_come_with_auxiliary_heads_and_turn_on_its_input_transform(tmp_path: Path) -> None:
    reference = torchvision.models.GoogLeNet(init_weights=False)
    torch.save(reference.state_dict(), tmp_path / "w.pth")
    model = build(tmp_path / "w.pth", id="torchvision/googlenet")
    assert torch.equal(model.conv1.conv.weight, reference.conv1.conv.weight)
    assert model.aux1 is None
    assert model.transform_input is True


@needs_real_weights
@pytest.mark.parametrize(
    ("id", "num_blocks", "mean", "size"),
    [
        ("torchvision/mobilenet_v2", 19, 0.5, 224),
        ("torchvision/squeezenet1_0", 9, 0.485, 227),
        ("timm/mobilenetv1_100", 14, 0.5, 224),
        ("timm/mobilenetv2_035", 19, 0.5, 224),
    ],
)
def test_real_weights_load_with_their_own_preprocessing(id: str, num_blocks: int, mean: float, size: int) -> None:
    path = SHARED / f"{id.split('/')[1]}.safetensors"
    options = {"pad_type": "same"} if id.startswith("timm/") else {}
    backbone = build_backbone(BackboneConfig(id=id, weights=str(path), options=options), 2)
    assert len(backbone.blocks) == num_blocks
    assert backbone.preprocessing.mean[0] == mean
    assert backbone.preprocessing.input_size == (size, size)
    assert backbone.weights == str(path.resolve()) or backbone.weights == str(path)
    with torch.no_grad():
        assert backbone.model.eval()(torch.rand(1, 3, size, size)).shape == (1, 2)


@needs_real_weights
def test_a_real_classifier_predicts_with_its_own_labels() -> None:
    model, preprocessing, labels = load_classifier("torchvision/mobilenet_v2", str(SHARED / "mobilenet_v2.safetensors"))
    assert len(labels) == 1000
    assert labels[0] == "tench"
    assert preprocessing.mean == (0.5, 0.5, 0.5)
    assert not model.training
    with pytest.raises(BackboneError, match="no classifier with the 1000 classes"):
        load_classifier("timm/mobilenetv1_100", str(SHARED / "mobilenetv1_100.safetensors"))
