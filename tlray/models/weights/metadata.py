"""What a weights file says of itself in its metadata: the architecture it is for, and how images are prepared."""

import math
from dataclasses import replace
from typing import Any, cast, get_args

from tlray.catalogue import Interpolation, ModelId, Preprocessing
from tlray.errors import BackboneError
from tlray.models.weights.read import WeightsFile


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
