"""Several networks, or several views of an image, as one network whose softmax is the mean of their probabilities.

    common = common_preprocessing([member.preprocessing for member in members])
    model = Ensemble(models, [member.preprocessing for member in members], common, weights)
    model = Tempered(Flipped(model), 1.3)

All of it is part of the exported graph. What comes out are log-probabilities, or logits divided by a temperature, so
whoever takes the softmax of a single network's logits does the same here.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from tlray.catalogue import Preprocessing
from tlray.errors import TlrayError

CROP_MODES = ("center", "squash")  # in which a smaller crop is a part of a larger one


def common_preprocessing(members: Sequence[Preprocessing]) -> Preprocessing:
    """One view of an image, with values in [0, 1], out of which every member's input can be made.

    As fine as the finest resize of the members, and as wide as their widest crop. TlrayError where their crops are not
    parts of one view.
    """
    first = members[0]
    if all(_geometry(p) == _geometry(first) for p in members) and first.crop_mode != "border":
        return replace(first, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    modes = sorted({p.crop_mode for p in members})
    if len(modes) > 1 or modes[0] not in CROP_MODES:
        raise TlrayError(f"images cropped by {' and '.join(modes)} cannot be made from one image inside a graph")
    if any(p.input_size[0] != p.input_size[1] for p in members):
        raise TlrayError("inputs that are not square cannot be made from one image inside a graph")
    finest = max(members, key=lambda p: (p.resize, p.input_size))
    widest = max(p.input_size[0] / p.resize for p in members)
    side = math.ceil(round(finest.resize * widest, 6))
    # A crop of a crop is the crop itself, to the pixel, where the margin between them is a multiple of four: half of it
    # is then even, and torchvision rounds halves to even numbers.
    aligned = side + (finest.input_size[0] - side) % 4
    side = aligned if aligned <= finest.resize else side
    return replace(finest, input_size=(side, side), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class View(nn.Module):
    """Images (B, 3, S, S) float32 in [0, 1], of the common preprocessing -> a member's input, normalised.

    The crop is in the middle and the resize two products with a matrix, which all formats compute alike.
    """

    mean: torch.Tensor
    std: torch.Tensor
    matrix: torch.Tensor | None

    def __init__(self, member: Preprocessing, common: Preprocessing) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(member.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(member.std).view(1, 3, 1, 1), persistent=False)
        self.crop: tuple[int, int] | None = None  # (first row or column, how many)
        matrix = None
        if _geometry(member) != _geometry(common):
            side, wanted = common.input_size[0], member.input_size[0]
            part = min(side, round(common.resize * wanted / member.resize))
            self.crop = (round((side - part) / 2), part)
            matrix = _resize_matrix(part, wanted, member.interpolation) if part != wanted else None
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.crop is not None:
            images = images.narrow(2, *self.crop).narrow(3, *self.crop)
        if self.matrix is not None:
            images = self.matrix @ images @ self.matrix.T
        return (images - self.mean) / self.std


class Ensemble(nn.Module):
    """Images (B, 3, S, S) float32 in [0, 1] -> log of the weighted mean of the members' probabilities (B, C)."""

    log_weights: torch.Tensor

    def __init__(
        self,
        members: Sequence[nn.Module],
        preprocessing: Sequence[Preprocessing],
        common: Preprocessing,
        weights: Sequence[float],
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.views = nn.ModuleList(View(member, common) for member in preprocessing)
        self.register_buffer("log_weights", torch.tensor(weights).log(), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logs = [
            torch.log_softmax(member(view(images)), dim=1) + self.log_weights[place]
            for place, (member, view) in enumerate(zip(self.members, self.views, strict=True))
        ]
        return torch.logsumexp(torch.stack(logs), dim=0)


class Flipped(nn.Module):
    """Log of the mean of a model's probabilities for an image and for its mirror image: two forwards an image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logs = [torch.log_softmax(self.model(view), dim=1) for view in (images, images.flip(3))]
        return torch.logsumexp(torch.stack(logs), dim=0) - math.log(2)


class Tempered(nn.Module):
    """A model's logits divided by a temperature (Guo et al., 2017): other probabilities, the same classes."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images) / self.temperature


def _geometry(p: Preprocessing) -> tuple[object, ...]:
    return p.input_size, p.resize, p.crop_mode, p.interpolation


def _resize_matrix(size: int, wanted: int, interpolation: str) -> torch.Tensor:
    """(wanted, size): what torch's resize along one axis is, with antialiasing as at evaluation."""
    identity = torch.eye(size)[None, None]
    antialias = interpolation != "nearest"
    resized = nn.functional.interpolate(identity, (wanted, size), mode=interpolation, antialias=antialias)
    return resized[0, 0].contiguous()
