"""Weights files: read one from a path or URI, check that it fits, load it into a model.

    file = read_weights("s3://bucket/mobilenet_v2.safetensors")
    check_architecture(file, model_id)
    load_weights(model, file, head=("classifier.1",), backbone_id="torchvision/mobilenet_v2")

Formats: .safetensors, and torch.save files (.pth, .pt, .bin, .tar) without arbitrary pickles. A safetensors file may
say in its metadata how images are to be prepared for it (mean, std, input_size, interpolation, crop_pct, resize) and
what it was made for (library, arch); both are honoured.
"""

import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import nn

from tlray import storage
from tlray.catalogue import Interpolation, ModelId, Preprocessing
from tlray.errors import BackboneError

PICKLED_SUFFIXES = (".pth", ".pt", ".bin", ".tar")
WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which training scripts keep the state dict
AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")  # of torchvision's GoogLeNet and Inception V3; they never train here
# torchvision's DenseNet files still have the layers' former names: denselayer1.norm.1 is denselayer1.norm1
DENSENET_FORMER_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
SHOWN_KEYS = 10


@dataclass(frozen=True)
class WeightsFile:
    uri: str
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]  # of a safetensors file, else empty


def read_weights(uri: str) -> WeightsFile:
    """The tensors and metadata of a weights file, on the CPU; BackboneError when it is missing or not one."""
    suffix = Path(uri).suffix.lower()
    if suffix not in (".safetensors", *PICKLED_SUFFIXES):
        raise BackboneError(
            f"weights {uri!r}: not a weights file; give pretrained, none, or a path or URI that ends in "
            f".safetensors or {', '.join(PICKLED_SUFFIXES)}; a weights tag goes into the id (torchvision/resnet50.TAG)"
        )
    uri = storage.absolute(uri)
    if not storage.exists(uri):
        raise BackboneError(f"weights {uri!r}: no such file")
    with storage.local_copy(uri) as path:
        return _read_safetensors(uri, path) if suffix == ".safetensors" else _read_pickled(uri, path)


def check_architecture(file: WeightsFile, model: ModelId) -> None:
    """BackboneError when the file's metadata says that it was made for another architecture."""
    library = file.metadata.get("library", model.library)
    arch = file.metadata.get("arch", model.name)
    if (library, arch) != (model.library, model.name):
        raise BackboneError(
            f"{file.uri} holds weights of another architecture: {library}/{arch}, not {model.arch}; "
            f"use the backbone {library}/{arch}"
        )


def preprocessing_of(file: WeightsFile, default: Preprocessing) -> Preprocessing:
    """`default` (the architecture's) with what the file's metadata says otherwise."""
    found = file.metadata
    result = default
    if "input_size" in found:
        result = result.with_input_size(_number(file, "input_size", int))
    if "crop_pct" in found:
        result = replace(result, resize=math.floor(result.input_size[0] / _number(file, "crop_pct", float)))
    if "resize" in found:
        result = replace(result, resize=_number(file, "resize", int))
    if "interpolation" in found:
        if found["interpolation"] not in get_args(Interpolation):
            raise _bad_metadata(file, "interpolation", f"one of {', '.join(get_args(Interpolation))}")
        result = replace(result, interpolation=cast(Interpolation, found["interpolation"]))
    mean = _triple(file, "mean") if "mean" in found else result.mean
    std = _triple(file, "std") if "std" in found else result.std
    return replace(result, mean=mean, std=std)


def load_weights(model: nn.Module, file: WeightsFile, head: tuple[str, ...], backbone_id: str) -> bool:
    """Copy the file's tensors into the model, in place -> whether the classifier's were among them.

    A classifier of another size is left out, as a whole; every other difference is a BackboneError that lists the keys.
    """
    expected = model.state_dict()
    tensors = _under_current_names(file.tensors, backbone_id)
    heads = tuple(f"{name}." for name in head)
    head_keys = [key for key in expected if key.startswith(heads)]
    fits = all(key in tensors and tensors[key].shape == expected[key].shape for key in head_keys)
    if not fits:
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(heads)}
        expected = {key: tensor for key, tensor in expected.items() if not key.startswith(heads)}
    problems = _differences(expected, tensors)
    if problems:
        shown = "; ".join(problems[:SHOWN_KEYS])
        more = f"; and {len(problems) - SHOWN_KEYS} more" if len(problems) > SHOWN_KEYS else ""
        raise BackboneError(
            f"{file.uri} does not fit {backbone_id}, it looks like weights of another architecture, input_size or "
            f"options; {len(problems)} keys differ: {shown}{more}"
        )
    complete = model.state_dict()  # with the layers' version numbers, which MNASNet insists on and safetensors lacks
    complete.update(tensors)
    model.load_state_dict(complete)
    return fits


def _differences(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> list[str]:
    counters = {key for key in expected if key.endswith("num_batches_tracked")}  # older files lack them
    shapes = [
        f"{key} is {tuple(found[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    missing = [f"{key} is missing" for key in expected if key not in found and key not in counters]
    unexpected = [f"{key} is unexpected" for key in found if key not in expected]
    # In turn, so that a list that is cut short shows some of each kind.
    return [problem for some in zip_longest(missing, unexpected, shapes) for problem in some if problem]


def _under_current_names(tensors: Mapping[str, torch.Tensor], backbone_id: str) -> dict[str, torch.Tensor]:
    """The tensors as the library's own loading would name them, without the auxiliary heads."""
    if not backbone_id.startswith("torchvision/"):
        return dict(tensors)
    return {
        DENSENET_FORMER_NAME.sub(r"\1", key): tensor
        for key, tensor in tensors.items()
        if not key.startswith(AUXILIARY_HEADS)
    }


def _read_safetensors(uri: str, path: Path) -> WeightsFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
            return WeightsFile(uri, tensors, dict(file.metadata() or {}))
    except SafetensorError as error:
        raise BackboneError(
            f"weights {uri!r}: not a whole safetensors file ({error}); fetch or export it again"
        ) from None


def _read_pickled(uri: str, path: Path) -> WeightsFile:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" not in str(error):
            raise _unreadable(uri, error) from None
        raise BackboneError(
            f"weights {uri!r}: refused, loading it would run code that the file brings along; where it was made, save "
            "the tensors only: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        ) from None
    except Exception as error:  # bytes that are no weights end in almost any exception type of torch's unpickler
        raise _unreadable(uri, error) from None
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(_is_entry(*entry) for entry in content.items()):
        raise BackboneError(f"weights {uri!r}: holds no state dict (parameter names with their tensors)")
    if all(key.startswith("module.") for key in content):  # saved from DistributedDataParallel
        content = {key.removeprefix("module."): tensor for key, tensor in content.items()}
    return WeightsFile(uri, dict(content), {})


def _is_entry(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, torch.Tensor)


def _unreadable(uri: str, error: Exception) -> BackboneError:
    reason = next(iter(str(error).splitlines()), "")[:120]
    return BackboneError(
        f"weights {uri!r}: not a whole torch.save file ({type(error).__name__}: {reason}); fetch or save it again"
    )


def _number(file: WeightsFile, key: str, kind: type[int] | type[float]) -> Any:
    try:
        value = kind(file.metadata[key])
    except ValueError:
        raise _bad_metadata(file, key, "one number") from None
    if not value > 0 or math.isinf(value):
        raise _bad_metadata(file, key, "a positive number")
    return value


def _triple(file: WeightsFile, key: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(part) for part in file.metadata[key].split(","))
    except ValueError:
        raise _bad_metadata(file, key, 'three numbers ("0.5,0.5,0.5")') from None
    return red, green, blue


def _bad_metadata(file: WeightsFile, key: str, expected: str) -> BackboneError:
    return BackboneError(f"{file.uri}: its metadata has {key}={file.metadata[key]!r}, expected {expected}")
