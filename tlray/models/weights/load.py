"""A file's tensors into a model: the names matched, the numbers checked, a head of another size left out."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import nn

from tlray.errors import BackboneError
from tlray.models.weights.names import stripped
from tlray.models.weights.read import WeightsFile

AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")  # of torchvision's GoogLeNet and Inception V3; they never train here
# torchvision's DenseNet files still have the layers' former names: denselayer1.norm.1 is denselayer1.norm1
DENSENET_FORMER_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
SHOWN_KEYS = 10


@dataclass(frozen=True)
class Loaded:
    has_head: bool  # whether the classifier's weights were among them
    notes: tuple[str, ...]  # what was done to the names, for people


def load_weights(model: nn.Module, file: WeightsFile, head: tuple[str, ...], backbone_id: str) -> Loaded:
    """Copy the file's tensors into the model, in place.

    A classifier of another size is left out, as a whole; every other difference is a BackboneError that lists the keys,
    and so is a number that is none.
    """
    expected = model.state_dict()
    tensors, notes = stripped(_under_current_names(file.tensors, backbone_id), expected)
    tensors = _under_current_names(tensors, backbone_id)
    heads = tuple(f"{name}." for name in head)
    head_keys = [key for key in expected if key.startswith(heads)]
    has_head = all(key in tensors and tensors[key].shape == expected[key].shape for key in head_keys)
    replaced: dict[str, torch.Tensor] = {}
    if not has_head:
        replaced = {key: tensor for key, tensor in tensors.items() if key.startswith(heads)}
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
    converted = {key: _converted(file.uri, key, tensor, expected[key]) for key, tensor in tensors.items()}
    check_finite(file.uri, {**replaced, **converted}, complete)  # as converted: float32 ends where float64 goes on
    complete.update(converted)
    model.load_state_dict(complete)
    return Loaded(has_head, tuple(f"{file.uri}: {note}" for note in (*file.notes, *notes)))


def check_finite(uri: str, tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """BackboneError that names a tensor with numbers that are NaN or infinite, where the model's own are finite."""
    for key, tensor in tensors.items():
        own = expected.get(key)
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
            continue
        if own is None or bool(torch.isfinite(own).all()):
            num = int((~torch.isfinite(tensor)).sum())
            raise BackboneError(
                f"{uri}: {num} of {tensor.numel()} numbers in {key} are NaN or infinite: what trained it has diverged, "
                "or the file is damaged; give an earlier checkpoint, or fetch it again"
            )


def _converted(uri: str, key: str, tensor: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The tensor with the numbers that the model computes with; BackboneError where they cannot be that."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
        raise BackboneError(f"{uri}: {key} holds no plain numbers ({tensor.layout}, {kind}): save it as float32")
    if expected.is_floating_point() and not tensor.is_floating_point():
        raise BackboneError(
            f"{uri}: {key} holds {kind}, where a model computes with real numbers: these are weights that were "
            "quantised for inference; give those before that"
        )
    return tensor.to(expected.dtype)


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
