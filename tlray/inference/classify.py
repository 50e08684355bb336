"""One part of a batch prediction: images read and decoded by some threads while others put them through the model.

    classifier = open_classifier(find_model("s3://bucket/run"), "cpu")
    data = classifier.classify(files, num_threads=2)                # the part's Parquet file

On a CPU every forward has one torch thread, and there are as many forwards as cores: cores that share one forward wait
for each other at its every layer, and for those that decode. Forwards are of few images there, so that what a layer
computes stays below the 32 MB from which on glibc asks the kernel for new pages each time. MobileNetV2 at 224 pixels on
two cores: 94 images a second by 4, of 12 ms CPU each; by 16 66, of 15 ms, 4 of them the kernel's.
"""

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from tlray import storage
from tlray.catalogue import Preprocessing
from tlray.data import jpeg
from tlray.data.decode import BadImageError, decode
from tlray.data.jpeg import SMALLEST_SIDE
from tlray.data.parallel import ordered_map
from tlray.data.transforms import eval_transform, needed_size, normalise
from tlray.errors import DataError, StorageError, UnreachableError
from tlray.export.assemble import assemble
from tlray.export.files import read_bundle_config
from tlray.export.model import load_backbones
from tlray.inference.output import ModelFacts, part_bytes
from tlray.inference.predict import find_export
from tlray.models.backbone import Backbone
from tlray.models.fold import folded
from tlray.models.split import SplitError, find_cut, frozen_prefix, trainable_suffix
from tlray.runs.bundle_sums import CHECKSUMS, read_checksums

IMAGES_AT_ONCE = 16  # that a thread reads
GROUPS_AT_ONCE = {"cpu": 1, "cuda": 8}  # of them that a thread puts through the model
PIXELS_AT_ONCE = 4 * 224 * 224  # in one forward on a CPU
READERS = 16  # at least, where most of the time is spent waiting for a server


@dataclass(frozen=True)
class _Group:
    """Some images that follow each other."""

    pixels: torch.Tensor  # (n, 3, H, W) uint8, channels last; of those that could be read
    errors: tuple[str | None, ...]  # one for each


def find_model(model_ref: str) -> ModelFacts:
    """The export that `model_ref` means; DataError where there is none."""
    uri = find_export(model_ref)
    config = read_bundle_config(uri, read_checksums(uri))
    return ModelFacts(uri=uri, version=_version(uri), classes=config.classes)


class Classifier:
    """An export made ready for many images; its probabilities are those of `tlray.load` to within the tolerance that
    the export states for its logits."""

    def __init__(self, facts: ModelFacts, device: str) -> None:
        """DataError when the export is no longer the one that was asked for."""
        if _version(facts.uri) != facts.version:
            raise DataError(f"{facts.uri} has changed since the prediction began: give another --output")
        backbones, config = load_backbones(facts.uri)
        self.facts = facts
        self._preprocessing = config.image_preprocessing
        self._device = torch.device(device)
        networks = [_Forward(faster(backbone, self._device)) for backbone in backbones]
        self._forward = assemble(networks, config).to(self._device)

    def classify(self, files: pa.Table, num_threads: int) -> bytes:
        """A part's Parquet file; `files`: uri, version and error of its images."""
        errors: list[str | None] = []
        probabilities = np.zeros((files.num_rows, len(self.facts.classes)), dtype=np.float32)
        torch.set_num_threads(1)
        with closing(self._groups(files, num_threads)) as groups:
            batches = iter(lambda: list(islice(groups, GROUPS_AT_ONCE[self._device.type])), [])
            forwards = 1 if self._device.type == "cuda" else num_threads
            done = ordered_map(self._probabilities, batches, num_threads=forwards, ahead=forwards + 1)
            with closing(done):
                for some, found in done:
                    rows = [len(errors) + place for place, error in enumerate(found) if error is None]
                    probabilities[rows] = some
                    errors += found
        return part_bytes(files["uri"].combine_chunks(), errors, probabilities, self.facts)

    def _groups(self, files: pa.Table, num_threads: int) -> Generator[_Group, None, None]:
        rows = list(zip(*(files[name].to_pylist() for name in ("uri", "version", "error")), strict=True))
        groups = (rows[start : start + IMAGES_AT_ONCE] for start in range(0, len(rows), IMAGES_AT_ONCE))
        readers = max(READERS, num_threads) if storage.is_remote(rows[0][0]) else num_threads
        return ordered_map(self._load, groups, num_threads=readers, ahead=2 * readers)

    def _load(self, rows: Sequence[tuple[str, str, str | None]]) -> _Group:
        """Runs in a thread. Written straight into the batch: images that are handed over one by one cost far more."""
        pixels = torch.empty(
            (len(rows), 3, *self._preprocessing.input_size), dtype=torch.uint8, memory_format=torch.channels_last
        )
        errors: list[str | None] = []
        for uri, version, error in rows:
            if error is None:
                try:
                    _read_into(pixels[errors.count(None)], uri, version, self._preprocessing)
                except BadImageError as bad:
                    error = bad.reason
                except MemoryError:
                    error = "needs more memory than there is"
                except UnreachableError:
                    raise  # the image is no worse for it, and the part is predicted again
                except StorageError as missing:
                    error = _reason(missing, uri)
            errors.append(error)
        return _Group(pixels[: errors.count(None)], tuple(errors))

    def _probabilities(self, groups: Sequence[_Group]) -> tuple[np.ndarray, list[str | None]]:
        """Runs in a thread -> (good images, C) float32, and the reason, or None, for each image."""
        errors = [error for group in groups for error in group.errors]
        pixels = groups[0].pixels if len(groups) == 1 else torch.cat([group.pixels for group in groups])
        if len(pixels) == 0:
            return np.zeros((0, len(self.facts.classes)), dtype=np.float32), errors
        with torch.inference_mode():
            batches = pixels.to(self._device).split(forward_size(self._device, self._preprocessing.input_size))
            logits = torch.cat([self._forward(normalise(batch, self._preprocessing)) for batch in batches])
            probabilities = torch.softmax(logits.double(), dim=1)
        return probabilities.float().cpu().numpy(), errors


class _Forward(nn.Module):
    """A function as a network of `assemble`."""

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.compute = forward

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.compute(images)


@lru_cache(maxsize=1)
def open_classifier(facts: ModelFacts, device: str) -> Classifier:
    """Once a process: a worker is given one part after the other."""
    return Classifier(facts, device)


def forward_size(device: torch.device, input_size: tuple[int, int]) -> int:
    """Images in one forward."""
    if device.type == "cuda":
        return IMAGES_AT_ONCE * GROUPS_AT_ONCE["cuda"]
    return max(1, min(IMAGES_AT_ONCE, PIXELS_AT_ONCE // (input_size[0] * input_size[1])))


def faster(backbone: Backbone, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model with its BatchNorms folded away, where its blocks are known; as it is where they are not."""
    model = backbone.model.eval().requires_grad_(False)
    try:
        num_blocks = len(backbone.blocks)
        prefix = folded(frozen_prefix(backbone, [find_cut(backbone, num_blocks)])).to(device)
        head = trainable_suffix(backbone, num_blocks).to(device)
    except SplitError:
        return model.to(device).to(memory_format=torch.channels_last)
    return lambda images: head(*prefix(images)[0])


def _read_into(place: torch.Tensor, uri: str, version: str, preprocessing: Preprocessing) -> None:
    """Fill `place` (3, H, W) with what validation in a run sees: large JPEGs are decoded no larger than is needed."""
    data = storage.read_bytes(uri, version or None)
    header = jpeg.read_header(data)
    size = None
    if header is not None and header.orientation is not None and min(header.height, header.width) >= SMALLEST_SIDE:
        shown = (header.height, header.width) if header.orientation < 5 else (header.width, header.height)
        size = needed_size(shown, preprocessing, "none")
    ready = eval_transform(torch.from_numpy(decode(data, size)).permute(2, 0, 1), preprocessing, place)
    if ready is not place:  # numpy copies in the thread that asks
        place.permute(1, 2, 0).numpy()[:] = ready.permute(1, 2, 0).numpy()


def _reason(error: StorageError, uri: str) -> str:
    """Why one image could not be read; a server that gives no access is raised, as it is the same for all images."""
    if storage.is_remote(uri) and not isinstance(error, (storage.NotFoundError, storage.ChangedError)):
        raise error
    return str(error).removeprefix(uri).strip(": ")


def _version(uri: str) -> str:
    return hashlib.sha256(storage.read_bytes(storage.join(uri, CHECKSUMS))).hexdigest()
