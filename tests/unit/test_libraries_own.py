"""The architectures that tlray builds itself, and Keras weights files."""

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.unit.families import by_hand, randomise_norms
from tests.unit.library_models import assert_splits, giga_multiply_adds, num_params, on_meta, untrained
from tlray.catalogue import ModelId
from tlray.catalogue.libraries import tlray
from tlray.catalogue.libraries.architectures.keras_resnet import DEPTHS, KerasResNetV2
from tlray.catalogue.libraries.architectures.keras_weights import architecture_of, convert, resnet_v2_state
from tlray.errors import BackboneError
from tlray.models.weights.load import load_weights
from tlray.models.weights.metadata import check_architecture, preprocessing_of
from tlray.models.weights.read import read_weights

KERAS_PADDING = {1: 0, 3: 1, 7: 3}  # pixels of zeros that Keras adds on each side before a "valid" convolution


@pytest.mark.parametrize("name", tlray.names())
def test_an_architecture_has_the_stated_size_and_takes_images_of_its_size(name: str) -> None:
    model, logits = on_meta(tlray, name)
    assert tuple(logits.shape) == (2, 1000)
    facts = tlray.facts(name, None)
    assert num_params(model) == facts["num_params"]
    assert giga_multiply_adds(model, facts["input_size"]) == pytest.approx(facts["gflops"], abs=0.006)
    classifier = model.classifier if name == "densenet264" else model.fc
    assert classifier.in_features == facts["feature_width"]


@pytest.mark.parametrize("name", ["resnet50v2", "yolov7_backbone"])
def test_an_architecture_splits_between_its_blocks(name: str) -> None:
    backbone = untrained(tlray, name, size=64)
    assert backbone.head == ("fc",)
    assert backbone.unused == ()
    assert_splits(backbone)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet264", "resnet101v2", "resnet152v2"])
def test_a_large_architecture_splits_between_its_blocks(name: str) -> None:
    assert_splits(untrained(tlray, name, size=64))


def test_the_blocks_are_those_of_the_papers() -> None:
    with torch.device("meta"):
        models = {name: tlray.construct(name, None, "none", 224, {}, 2) for name in tlray.names()}
    counts = {
        name: len(by_hand(model, head="classifier" if name == "densenet264" else "fc").blocks)
        for name, model in models.items()
    }
    # stem and residual blocks; stem, dense layers and transitions; four convolutions, four ELANs, three transitions
    assert counts == {
        "resnet50v2": 17,
        "resnet101v2": 34,
        "resnet152v2": 51,
        "densenet264": 134,
        "yolov7_backbone": 11,
    }


def test_weights_that_nobody_published_are_refused_with_the_remedy() -> None:
    for name in tlray.names():
        assert tlray.tags(name) == ()
        with pytest.raises(BackboneError, match="give weights: a path or URI, or none"):
            tlray.construct(name, None, "pretrained", 224, {}, 2)


def test_only_classifiers_have_labels() -> None:
    assert tlray.labels("resnet50v2", None)[0] == "tench"
    assert len(tlray.labels("densenet264", None)) == 1000
    with pytest.raises(BackboneError, match="detector"):
        tlray.labels("yolov7_backbone", None)


def write_legacy_file(path: Path, model: nn.Module, inside: str | None = None) -> dict[str, np.ndarray]:
    """The .h5 file that tf.keras wrote for a model with these weights -> its arrays by `layer/array`."""
    h5py = pytest.importorskip("h5py", reason="needs the extra keras")
    to_keras = {"running_mean": "moving_mean", "running_var": "moving_variance"}
    arrays: dict[str, np.ndarray] = {}
    for name, module in model.named_modules():
        for key, tensor in {
            **dict(module.named_parameters(recurse=False)),
            **dict(module.named_buffers(recurse=False)),
        }.items():
            if key == "num_batches_tracked":
                continue
            keras_key = {"weight": "kernel", "bias": "bias"}.get(key)
            if isinstance(module, nn.BatchNorm2d):
                keras_key = {"weight": "gamma", "bias": "beta"}.get(key, to_keras.get(key))
            array = tensor.detach().numpy()
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
            arrays[f"{keras_layer(name)}/{keras_key}"] = np.ascontiguousarray(array)
    with h5py.File(path, "w") as file:
        root = file.create_group(inside) if inside else file
        layers = ["input_1", "pool1_pad", *dict.fromkeys(key.partition("/")[0] for key in arrays)]
        root.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer in layers:
            names = [f"{key}:0" for key in arrays if key.partition("/")[0] == layer]
            group = root.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name in names:
                group[name] = arrays[name.removesuffix(":0")]
    return arrays


def keras_layer(name: str) -> str:
    """conv2.block1.bn1 -> conv2_block1_1_bn"""
    stage, *rest = name.split(".")
    if not rest:
        return {"fc": "predictions"}.get(name, name)
    block, layer = rest
    return f"{stage}_{block}_{layer if layer == 'preact_bn' else f'{layer[-1]}_{layer[:-1]}'}"


def as_keras_defines_it(arrays: dict[str, np.ndarray], depths: tuple[int, ...], images: torch.Tensor) -> torch.Tensor:
    """ResNetV2 of keras.applications, evaluated from the arrays of its file: layer by layer, as its source has it."""
    tensors = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}

    def convolution(values: torch.Tensor, layer: str, stride: int = 1) -> torch.Tensor:
        kernel = tensors[f"{layer}/kernel"].permute(3, 2, 0, 1)
        margin = KERAS_PADDING[kernel.shape[-1]]
        values = functional.pad(values, (margin,) * 4)
        return functional.conv2d(values, kernel, tensors.get(f"{layer}/bias"), stride)

    def norm(values: torch.Tensor, layer: str) -> torch.Tensor:
        gamma, beta, mean, variance = (
            tensors[f"{layer}/{key}"][:, None, None] for key in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return ((values - mean) / (variance + 1.001e-5).sqrt() * gamma + beta).relu()

    values = convolution(images, "conv1_conv", stride=2)
    values = functional.max_pool2d(functional.pad(values, (1, 1, 1, 1)), 3, 2)
    for stage, depth in enumerate(depths, start=2):
        for number in range(1, depth + 1):
            name = f"conv{stage}_block{number}"
            stride = 2 if number == depth and stage < 5 else 1
            active = norm(values, f"{name}_preact_bn")
            shortcut = (
                convolution(active, f"{name}_0_conv", stride) if number == 1 else values[:, :, ::stride, ::stride]
            )
            inner = norm(convolution(active, f"{name}_1_conv"), f"{name}_1_bn")
            inner = norm(convolution(inner, f"{name}_2_conv", stride), f"{name}_2_bn")
            values = shortcut + convolution(inner, f"{name}_3_conv")
    pooled = norm(values, "post_bn").mean(dim=(2, 3))
    return pooled @ tensors["predictions/kernel"] + tensors["predictions/bias"]


@pytest.mark.parametrize("inside", [None, "model_weights"], ids=["weights only", "whole model"])
def test_a_converted_keras_file_gives_what_keras_defines(tmp_path: Path, inside: str | None) -> None:
    depths = (2, 2, 1, 2)
    torch.manual_seed(0)
    model = KerasResNetV2(depths, num_classes=5)
    randomise_norms(model)
    arrays = write_legacy_file(tmp_path / "weights.h5", model, inside)
    converted = KerasResNetV2(depths, num_classes=5)
    missing = converted.load_state_dict(resnet_v2_state(tmp_path / "weights.h5"), strict=False).missing_keys
    assert all(key.endswith("num_batches_tracked") for key in missing)
    images = torch.randn(2, 3, 75, 75)
    with torch.no_grad():
        expected = as_keras_defines_it(arrays, depths, images)
        logits = converted.eval()(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_converted_file_says_what_it_is_and_loads_as_weights(tmp_path: Path, capsys: Any) -> None:
    with torch.random.fork_rng():
        model = KerasResNetV2(DEPTHS["resnet50v2"], num_classes=2)
    source, target = tmp_path / "resnet50v2.h5", tmp_path / "resnet50v2.safetensors"
    write_legacy_file(source, model)
    assert convert(source, target) == "resnet50v2"
    file = read_weights(str(target))
    check_architecture(file, ModelId("tlray", "resnet50v2", None))  # type: ignore[arg-type]
    assert preprocessing_of(file, tlray.preprocessing("densenet264", None)).mean == (0.5, 0.5, 0.5)
    with torch.random.fork_rng():
        loaded = tlray.construct("resnet50v2", None, "file", 224, {}, 2)
    assert load_weights(loaded, file, ("fc",), "tlray/resnet50v2").has_head
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in loaded.state_dict().items())


def test_tensors_of_another_architecture_are_not_taken_for_a_resnet() -> None:
    state = KerasResNetV2((1, 1, 1, 1), num_classes=2).state_dict()
    with pytest.raises(BackboneError, match="are of none of resnet50v2, resnet101v2, resnet152v2"):
        architecture_of(state)


def test_a_keras_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="needs the extra keras")
    path = tmp_path / "new.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_group("layers")
    with pytest.raises(BackboneError, match="not a legacy Keras file"):
        resnet_v2_state(path)
    path.write_bytes(b"no HDF5 at all")
    with pytest.raises(BackboneError, match="not a whole HDF5 file"):
        resnet_v2_state(path)


def test_the_converter_runs_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py", reason="needs the extra keras")
    monkeypatch.setattr(sys, "argv", ["keras_weights", str(tmp_path / "absent.h5"), str(tmp_path / "out.safetensors")])
    monkeypatch.delitem(sys.modules, "tlray.catalogue.libraries.architectures.keras_weights")
    with pytest.raises(BackboneError, match=r"absent\.h5"):
        runpy.run_module("tlray.catalogue.libraries.architectures.keras_weights", run_name="__main__")
