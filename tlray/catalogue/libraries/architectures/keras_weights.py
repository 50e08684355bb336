"""Weights files of Keras Applications' ResNetV2 (legacy .h5) -> tensors for tlray's own modules.

python -m tlray.catalogue.libraries.architectures.keras_weights resnet50v2_weights_tf_dim.h5 OUT.safetensors

A legacy file has one group for each layer, with the names of its arrays in the attribute `weight_names`
("conv1_conv/kernel:0"); a file of a whole model has these groups inside `model_weights`. The newer .weights.h5 and
.keras files number their layers instead of naming them and are refused.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tlray.catalogue.libraries.architectures.keras_resnet import DEPTHS, KerasResNetV2
from tlray.catalogue.libraries.optional import load
from tlray.errors import BackboneError

EXTRA = "keras"
BLOCK_LAYER = re.compile(r"(conv\d)_(block\d+)_(?:(preact_bn)|(\d)_(conv|bn))$")
TENSOR_NAMES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
PREPROCESSING = {"mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5"}  # keras.applications' mode "tf": pixels in -1..1


def resnet_v2_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a ResNet50V2, 101V2 or 152V2 file under the names of `KerasResNetV2`, float32, on the CPU.

    A file without its top has no `fc`. BackboneError: h5py is missing, or the file is not of this kind.
    """
    h5py = load("h5py", extra=EXTRA)
    try:
        with h5py.File(path, "r") as file:
            arrays = dict(_arrays(file.get("model_weights", file), path))
    except OSError as error:
        raise BackboneError(f"weights {str(path)!r}: not a whole HDF5 file ({error}); fetch it again") from None
    return {_torch_name(layer, name, path): _as_torch(array) for (layer, name), array in arrays.items()}


def architecture_of(state: dict[str, torch.Tensor]) -> str:
    """resnet50v2, resnet101v2 or resnet152v2: the one that has exactly these tensors; BackboneError when none has."""
    for name, depths in DEPTHS.items():
        with torch.device("meta"):
            expected = KerasResNetV2(depths, num_classes=1).state_dict()
        without_top = {key for key in expected if not key.endswith("num_batches_tracked") and not key.startswith("fc.")}
        if without_top == {key for key in state if not key.startswith("fc.")}:
            return name
    raise BackboneError(f"these {len(state)} tensors are of none of {', '.join(DEPTHS)}")


def convert(source: str | Path, target: str | Path) -> str:
    """Write the .safetensors file `target` of the legacy .h5 file `source` -> the name of its architecture."""
    state = resnet_v2_state(source)
    arch = architecture_of(state)
    save_file(state, target, metadata={"library": "tlray", "arch": arch, **PREPROCESSING})
    return arch


def _arrays(group: Any, path: str | Path) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    if "layer_names" not in group.attrs:
        raise BackboneError(
            f"weights {str(path)!r}: has no layer_names, so it is not a legacy Keras file; "
            "give the .h5 file that Keras Applications downloads, not a .weights.h5 or .keras file"
        )
    for layer in (_text(name) for name in group.attrs["layer_names"]):
        for name in (_text(name) for name in group[layer].attrs["weight_names"]):
            yield (layer, name.rpartition("/")[2].partition(":")[0]), np.asarray(group[layer][name], dtype=np.float32)


def _torch_name(layer: str, name: str, path: str | Path) -> str:
    match = BLOCK_LAYER.match(layer)
    module = layer
    if match is not None:
        stage, block, preact, number, kind = match.groups()
        module = f"{stage}.{block}.{preact or kind + number}"
    elif layer in ("predictions", "probs"):
        module = "fc"
    if name not in TENSOR_NAMES:
        raise BackboneError(
            f"weights {str(path)!r}: layer {layer!r} has an array {name!r}, which no ResNetV2 of Keras has"
        )
    return f"{module}.{TENSOR_NAMES[name]}"


def _as_torch(array: np.ndarray) -> torch.Tensor:
    """Kernels of convolutions (H, W, in, out) -> (out, in, H, W); of dense layers (in, out) -> (out, in)."""
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    elif array.ndim == 2:
        array = array.T
    return torch.from_numpy(np.ascontiguousarray(array))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


if __name__ == "__main__":
    print(convert(sys.argv[1], sys.argv[2]))
