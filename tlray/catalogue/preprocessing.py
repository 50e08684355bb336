"""How an image becomes a backbone's input at evaluation, in the same words for every library."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

CropMode = Literal["center", "squash", "border"]
Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes a backbone's input at evaluation; it belongs to the weights, not to the architecture."""

    input_size: tuple[int, int]  # height, width after the crop, pixels
    resize: int  # short side before the crop (crop_mode "squash": both sides; "border": the long side), pixels
    crop_mode: CropMode
    interpolation: Interpolation
    mean: tuple[float, float, float]  # of values in 0..1, per channel R, G, B
    std: tuple[float, float, float]

    def with_input_size(self, size: int) -> "Preprocessing":
        """The same for square inputs of `size` pixels, the resize before the crop scaled in proportion."""
        return replace(self, input_size=(size, size), resize=round(self.resize * size / self.input_size[0]))

    def to_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`, also after a round trip through JSON."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**plain)
