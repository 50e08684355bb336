"""A model that takes image files and gives class names: what `tlray.load` returns.

model = tlray.load("s3://bucket/runs/birds/20260101-120000-ab12/exports/1-resnet50")
for prediction in model(["a.jpg", "b.png"]):
    print(prediction.uri, prediction.label, prediction.confidence, prediction.error)

An image that cannot be read becomes a prediction with `error` set and no label, so that one bad file does not end the
classification of a folder.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load as load_safetensors
from torch import nn

from tlray import storage
from tlray.catalogue import Preprocessing
from tlray.data.decode import BadImageError, as_rgb, decode, shape_problem
from tlray.data.parallel import ordered_map
from tlray.data.transforms import eval_transform, normalise
from tlray.errors import DataError, StorageError
from tlray.export.assemble import assemble, rebuild
from tlray.export.files import BundleConfig, read_bundle_config
from tlray.models.backbone import Backbone
from tlray.runs.bundle_sums import WEIGHTS, read_checksums, read_verified

NUM_BEST = 5


@dataclass(frozen=True)
class Scored:
    """An image with its logits (C,) float32 on the CPU, or with the reason why it has none."""

    image: Any  # as it was given
    logits: torch.Tensor | None
    error: str | None


@dataclass(frozen=True)
class _Prepared:
    image: Any
    pixels: torch.Tensor | None  # (3, *input_size) uint8
    error: str | None


@dataclass(frozen=True)
class Prediction:
    """The class of one image; label, confidence and probabilities are None when `error` says why."""

    uri: str | None  # None for an image that was not given by its location
    label: str | None
    confidence: float | None  # probability of `label`
    probabilities: tuple[float, ...] | None  # in the order of the model's classes
    best: tuple[tuple[str, float], ...]  # the most probable classes, five at most
    error: str | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the five most probable classes instead of all."""
        best = [{"label": label, "probability": probability} for label, probability in self.best]
        return {
            "uri": self.uri,
            "label": self.label,
            "confidence": self.confidence,
            "best": best,
            "error": self.error,
        }


class Model:
    """A classifier with its classes and its preprocessing, in evaluation mode."""

    def __init__(
        self,
        module: nn.Module,
        classes: tuple[str, ...],
        preprocessing: Preprocessing,
        *,
        config: BundleConfig | None = None,
        device: str | torch.device = "cpu",
        batch_size: int = 32,
        num_threads: int = 4,
    ) -> None:
        self.module = module.to(device).eval()  # images (B, 3, H, W) float32, normalised -> logits (B, C)
        self.classes = classes
        self.preprocessing = preprocessing
        self.config = config  # None for a model that does not come from an export bundle
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.num_threads = num_threads

    def __call__(self, images: Any) -> list[Prediction]:
        """Classify images, or one image, in order.

        An image is a path, URI, encoded bytes, a function that gives them, PIL image, array (H, W, 3) uint8 or tensor
        (3, H, W) uint8, RGB.
        """
        many = isinstance(images, Iterable) and not isinstance(images, str | bytes | Path) and not _is_image(images)
        return list(self.stream(images if many else [images]))

    def stream(self, images: Iterable[Any]) -> Iterator[Prediction]:
        """The same as an iterator that holds a few batches at a time."""
        for scored in self.score(images):
            yield self._prediction(scored)

    def score(self, images: Iterable[Any]) -> Iterator[Scored]:
        """Logits of every image, in order; threads read and decode the batch after the one being computed."""
        prepared = ordered_map(self._prepare, images, num_threads=self.num_threads, ahead=2 * self.batch_size)
        with contextlib.closing(prepared):
            while batch := list(itertools.islice(prepared, self.batch_size)):
                yield from self._score_batch(batch)

    def _prepare(self, image: Any) -> "_Prepared":
        try:
            return _Prepared(image, eval_transform(_read(image), self.preprocessing), None)
        except (DataError, StorageError) as error:
            return _Prepared(image, None, str(error))
        except MemoryError:
            return _Prepared(image, None, "needs more memory than there is")

    @torch.no_grad()
    def _score_batch(self, batch: Sequence["_Prepared"]) -> list[Scored]:
        readable = [prepared.pixels for prepared in batch if prepared.pixels is not None]
        logits: Iterator[torch.Tensor] = iter(())
        if readable:
            images = normalise(torch.stack(readable).to(self.device), self.preprocessing)
            logits = iter(self.module(images).float().cpu())
        return [Scored(p.image, next(logits) if p.error is None else None, p.error) for p in batch]

    def _prediction(self, scored: Scored) -> Prediction:
        uri = str(scored.image) if isinstance(scored.image, str | Path) else None
        if scored.logits is None:
            return Prediction(uri=uri, label=None, confidence=None, probabilities=None, best=(), error=scored.error)
        probabilities = torch.softmax(scored.logits.double(), dim=0)
        values, places = probabilities.topk(min(NUM_BEST, len(self.classes)))
        best = [(self.classes[place], value) for place, value in zip(places.tolist(), values.tolist(), strict=True)]
        return Prediction(
            uri=uri,
            label=best[0][0],
            confidence=best[0][1],
            probabilities=tuple(probabilities.tolist()),
            best=tuple(best),
            error=None,
        )


def load(
    uri: str, *, device: str = "cpu", batch_size: int = 32, num_threads: int = 4, tta: Literal["none", "flip"] = "none"
) -> Model:
    """The model of an export bundle, local or s3://; needs no hub, no run folder and no Ray.

    `tta="flip"` averages the probabilities of an image and its mirror image, for twice the time; a bundle that was
    exported so does it in any case.

    DataError: not an export bundle, or a file whose checksum is not that of SHA256SUMS.
    """
    backbones, config = load_backbones(uri)
    if tta != "none":
        config = config.model_copy(update={"tta": tta})
    return Model(
        assemble([backbone.model for backbone in backbones], config),
        config.classes,
        config.image_preprocessing,
        config=config,
        device=device,
        batch_size=batch_size,
        num_threads=num_threads,
    )


def load_backbones(uri: str) -> tuple[list[Backbone], BundleConfig]:
    """The networks as the trials had them, with their blocks, for whoever runs them in another way; errors as `load`.

    One, or an ensemble's members; `assemble` makes the bundle's model out of them.
    """
    uri = storage.absolute(uri)
    checksums = read_checksums(uri)
    config = read_bundle_config(uri, checksums)
    return rebuild(config, load_safetensors(read_verified(uri, WEIGHTS, checksums))), config


def _is_image(value: Any) -> bool:
    return isinstance(value, Image.Image | np.ndarray | torch.Tensor)


def _read(image: Any) -> torch.Tensor:
    """Any of the kinds of image that a model takes -> (3, H, W) uint8 RGB."""
    if isinstance(image, str | Path):
        return _planes(decode(storage.read_bytes(storage.absolute(str(image)))))
    if isinstance(image, bytes):
        return _planes(decode(image))
    if callable(image):
        return _planes(decode(image()))
    if isinstance(image, Image.Image):
        return _planes(_usable(np.array(as_rgb(image))))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return _planes(_usable(image))
    if isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3:
        _usable(image.permute(1, 2, 0).numpy())
        return image
    shape = f" of shape {tuple(image.shape)} and dtype {image.dtype}" if hasattr(image, "shape") else ""
    raise TypeError(
        f"{type(image).__name__}{shape} is not an image: give a path, URI, bytes, PIL image, "
        "array (H, W, 3) uint8 or tensor (3, H, W) uint8"
    )


def _usable(pixels: np.ndarray) -> np.ndarray:
    """The same (H, W, 3); BadImageError as for a file of that shape."""
    if problem := shape_problem(*pixels.shape[:2]):
        raise BadImageError(problem)
    return pixels


def _planes(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)
