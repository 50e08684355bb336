"""config.json of an export bundle, which says how to rebuild and use the model, and of which trial it is.

config = read_bundle_config(uri, read_checksums(uri))
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tlray import storage
from tlray.catalogue import Preprocessing
from tlray.config import BackboneConfig
from tlray.errors import DataError, StorageError
from tlray.runs.bundle_sums import CONFIG, read_verified

FORMAT_VERSION = 2
READABLE = (1, 2)  # 1 had neither members, nor temperature, nor views


class MemberConfig(BaseModel):
    """One network of an ensemble: how to rebuild it, and which trial's it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: BackboneConfig
    initial_weights: str
    strategy: str
    params: dict[str, Any]
    preprocessing: dict[str, Any]  # its own; the graph makes it out of the bundle's
    weight: float  # in the mean of the probabilities
    temperature: float  # by which its logits are divided before
    trial_id: str
    checkpoint_sha256: str

    @property
    def image_preprocessing(self) -> Preprocessing:
        return Preprocessing.from_dict(self.preprocessing)


class BundleConfig(BaseModel):
    """config.json. `backbone` rebuilds the architecture without weights; training began with `initial_weights`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int
    tlray_version: str
    libraries: dict[str, str]  # versions that the bundle was written with
    backbone: BackboneConfig | None  # None of an ensemble, whose members have theirs
    initial_weights: str
    strategy: str
    params: dict[str, Any]  # the recipe
    classes: tuple[str, ...]  # in the order of the logits
    preprocessing: dict[str, Any]  # of `Preprocessing.to_dict`
    input: dict[str, Any]  # name, dtype and shape of what the exported programs take
    output: dict[str, Any]
    tolerance: dict[str, float]  # within which the formats' logits agree; see `formats.allowed_difference`
    trial_id: str | None = None  # of the run that it comes from; None of an ensemble, or where there was no run
    checkpoint_sha256: str | None = None  # of the checkpoint whose weights it holds; of an ensemble, see `identity`
    members: tuple[MemberConfig, ...] = ()  # of an ensemble
    temperature: float = 1.0  # by which the logits are divided; part of all formats
    tta: Literal["none", "flip"] = "none"  # flip: the mean of the image's and its mirror image's probabilities

    @property
    def image_preprocessing(self) -> Preprocessing:
        return Preprocessing.from_dict(self.preprocessing)

    @property
    def backbones(self) -> list[BackboneConfig]:
        """What its networks are built from."""
        return [member.backbone for member in self.members] or ([self.backbone] if self.backbone is not None else [])

    @property
    def title(self) -> str:
        return f"ensemble of {len(self.members)}" if self.backbone is None else self.backbone.id

    @property
    def num_forwards(self) -> int:
        """Passes of a network for one image."""
        return len(self.backbones) * (2 if self.tta == "flip" else 1)


def read_bundle_config(uri: str, checksums: Mapping[str, str]) -> BundleConfig:
    """config.json of a bundle; DataError when another version of tlray wrote something else there."""
    try:
        document = storage.parse_object(read_verified(uri, CONFIG, checksums), storage.join(uri, CONFIG))
    except StorageError as error:
        raise DataError(str(error)) from None
    found = document.get("format_version")
    if found not in READABLE:
        raise DataError(
            f"{uri}: {CONFIG} has format_version {found}, this tlray reads {FORMAT_VERSION}: export it again"
        )
    try:
        return BundleConfig.model_validate(document)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise DataError(f"{uri}: {CONFIG} is not one that tlray wrote: {field}: {error.errors()[0]['msg']}") from None
