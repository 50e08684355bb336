"""A weights file from a path or URI: its tensors under the names that the file has for them, and its metadata."""

import argparse
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from tlray import storage
from tlray.errors import BackboneError
from tlray.models.weights.kinds import PICKLED_SUFFIXES, SAFETENSORS, SUFFIXES, check_kind
from tlray.models.weights.names import unwrapped

GLOBAL = re.compile(r"GLOBAL ([\w.]+)")  # what torch names where it refuses a pickle


@dataclass(frozen=True)
class WeightsFile:
    uri: str
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]  # of a safetensors file, else empty
    notes: tuple[str, ...] = ()  # which of several sets of weights it is


def read_weights(uri: str) -> WeightsFile:
    """The tensors and metadata of a weights file, on the CPU; BackboneError when it is missing or not one."""
    suffix = Path(uri).suffix.lower()
    if suffix not in SUFFIXES:
        raise BackboneError(
            f"weights {uri!r}: not a weights file; give pretrained, none, or a path or URI that ends in "
            f".safetensors or {', '.join(PICKLED_SUFFIXES)}; a weights tag goes into the id (torchvision/resnet50.TAG)"
        )
    uri = storage.absolute(uri)
    if not storage.exists(uri):
        raise BackboneError(f"weights {uri!r}: no such file")
    with storage.local_copy(uri) as path:
        check_kind(uri, path)
        return _read_safetensors(uri, path) if suffix == SAFETENSORS else _read_pickled(uri, path)


def _read_safetensors(uri: str, path: Path) -> WeightsFile:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
            metadata = dict(file.metadata() or {})
    except Exception as error:  # SafetensorError, and torch's of a data type that it lacks
        raise BackboneError(
            f"weights {uri!r}: not a whole safetensors file ({_first_line(error)}); fetch or export it again"
        ) from None
    if not tensors:
        raise BackboneError(f"weights {uri!r}: holds no tensors; export it again")
    return WeightsFile(uri, tensors, metadata)


def _read_pickled(uri: str, path: Path) -> WeightsFile:
    try:
        # training scripts keep their arguments beside the weights; a Namespace is data and runs nothing
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" not in str(error):
            raise _unreadable(uri, error) from None
        found = GLOBAL.search(str(error))
        raise BackboneError(
            f"weights {uri!r}: refused, loading it would run code that the file brings along"
            f"{f' ({found[1]})' if found else ''}; where it was made, save "
            "the tensors only: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        ) from None
    except Exception as error:  # bytes that are no weights end in almost any exception type of torch's unpickler
        raise _unreadable(uri, error) from None
    state, notes = unwrapped(content)
    if state is None:
        raise BackboneError(f"weights {uri!r}: holds no state dict (parameter names with their tensors)")
    return WeightsFile(uri, state, {}, notes)


def _unreadable(uri: str, error: Exception) -> BackboneError:
    return BackboneError(
        f"weights {uri!r}: not a whole torch.save file ({type(error).__name__}: {_first_line(error)}); "
        "fetch or save it again"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:120]
