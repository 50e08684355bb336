"""The files of an export bundle, their checksums, and config.json, which says how to rebuild and use the model.

SHA256SUMS is written last, so a folder that has it is whole; `sha256sum -c SHA256SUMS` checks it without tlray.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tlray import storage
from tlray.catalogue import Preprocessing
from tlray.config import BackboneConfig
from tlray.errors import DataError
from tlray.locations import CHECKSUMS as CHECKSUMS  # for those who read and write bundles

WEIGHTS, ONNX, PROGRAM = "model.safetensors", "model.onnx", "model.pt2"
CONFIG, METRICS, CARD = "config.json", "metrics.json", "MODEL_CARD.md"
FORMAT_VERSION = 1


class BundleConfig(BaseModel):
    """config.json. `backbone` rebuilds the architecture without weights; training began with `initial_weights`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int
    tlray_version: str
    libraries: dict[str, str]  # versions that the bundle was written with
    backbone: BackboneConfig
    initial_weights: str
    strategy: str
    params: dict[str, Any]  # the recipe
    classes: tuple[str, ...]  # in the order of the logits
    preprocessing: dict[str, Any]  # of `Preprocessing.to_dict`
    input: dict[str, Any]  # name, dtype and shape of what the exported programs take
    output: dict[str, Any]
    tolerance: dict[str, float]  # within which the formats' logits agree; see `formats.allowed_difference`

    @property
    def image_preprocessing(self) -> Preprocessing:
        return Preprocessing.from_dict(self.preprocessing)


def checksum_lines(folder: Path) -> str:
    """Text of SHA256SUMS for every file of a local folder."""
    names = sorted(path.name for path in folder.iterdir() if path.name != CHECKSUMS)
    return "".join(f"{_file_sha256(folder / name)}  {name}\n" for name in names)


def read_checksums(uri: str) -> dict[str, str]:
    """File name -> sha256 of a bundle; DataError, which names what is missing, when the folder is not a whole one."""
    sums_uri = storage.join(uri, CHECKSUMS)
    if not storage.exists(sums_uri):
        missing = [name for name in (CONFIG, WEIGHTS, CHECKSUMS) if not storage.exists(storage.join(uri, name))]
        raise DataError(f"{uri} is not an export bundle: it has no {', '.join(missing)}; `tlray export RUN` writes one")
    pairs = (line.split(maxsplit=1) for line in storage.read_text(sums_uri).splitlines() if line.strip())
    checksums = {pair[1].lstrip("*"): pair[0] for pair in pairs if len(pair) == 2}
    unlisted = [name for name in (CONFIG, WEIGHTS) if name not in checksums]
    if unlisted:
        raise DataError(f"{sums_uri} does not list {', '.join(unlisted)}: export the model again")
    return checksums


def read_verified(uri: str, name: str, checksums: Mapping[str, str]) -> bytes:
    """Bytes of a bundle's file; DataError when they are not those that were exported."""
    location = storage.join(uri, name)
    if not storage.exists(location):
        raise DataError(f"{uri} is not a whole export bundle: it has no {name}; copy or export it again")
    data = storage.read_bytes(location)
    if hashlib.sha256(data).hexdigest() != checksums[name]:
        raise DataError(f"{location} is corrupted: its sha256 is not that of {CHECKSUMS}; copy or export it again")
    return data


def read_bundle_config(uri: str, checksums: Mapping[str, str]) -> BundleConfig:
    """config.json of a bundle; DataError when another version of tlray wrote something else there."""
    document = json.loads(read_verified(uri, CONFIG, checksums))
    found = document.get("format_version")
    if found != FORMAT_VERSION:
        raise DataError(
            f"{uri}: {CONFIG} has format_version {found}, this tlray reads {FORMAT_VERSION}: export it again"
        )
    try:
        return BundleConfig.model_validate(document)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise DataError(f"{uri}: {CONFIG} is not one that tlray wrote: {field}: {error.errors()[0]['msg']}") from None


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
