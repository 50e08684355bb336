"""What the programs of `benchmarks.ingest` are to read: photos, tlray's manifests of them, a prepared copy, a bucket.

    inputs = Inputs(folder, 1000, 16)
    source = inputs.source("loose", str(inputs.photos["small"]), prepare=False)
    source.manifest, source.manifest_cpu_ms

All images are for training, so that every program goes over all of them.
"""

import dataclasses
import time
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from benchmarks.photos import as_paths, write_large, write_small
from benchmarks.programs.ingest_pass import SIZE
from tlray import storage
from tlray.config import DataConfig
from tlray.data.images import Images
from tlray.data.manifest import Manifest, make_manifest
from tlray.data.prepared import prepare_manifest
from tlray.runs.folder import write_format
from tlray.runs.manifest import save_manifest

BUCKET = "photos"
THUMBNAIL = 8
FRACTION = 0.3  # for val and test, before all are made training images: of few large photos each must get some


@dataclasses.dataclass(frozen=True)
class Source:
    """One place that tlray reads from."""

    data: DataConfig
    manifest: str  # folder of a saved one
    num_images: int
    manifest_cpu_ms: float  # an image: listing, reading and checking it, and keeping it where it is prepared


class Inputs:
    """The photos and all that is made of them in `folder`, before anything is measured."""

    def __init__(self, folder: Path, num_small: int, num_large: int) -> None:
        self.folder = folder
        self.photos = {"small": folder / "small", "large": folder / "large"}
        origins = {
            "small": write_small(self.photos["small"], num_small),
            "large": write_large(self.photos["large"], num_large),
        }
        sizes = {
            name: np.mean([path.stat().st_size for path in as_paths(photos)]) for name, photos in self.photos.items()
        }
        self.num_images = {"small": num_small, "large": num_large}
        self.description = "\n".join(
            f"{name}: {self.num_images[name]} {origin}, {sizes[name] / 1e6:.2f} MB each"
            for name, origin in origins.items()
        )
        self._references = {name: Reference(as_paths(photos)) for name, photos in self.photos.items()}

    def source(self, name: str, location: str, prepare: bool) -> Source:
        """A manifest of the images at `location`, with `prepare` of prepared shards of them."""
        data = DataConfig(
            train=location,
            val_fraction=FRACTION,
            test_fraction=FRACTION,
            prepare="always" if prepare else "never",
            prepared=str(self.folder / f"{name}-shards"),
            cache=str(self.folder / f"{name}-cache"),
        )
        before = time.process_time()
        found = prepare_manifest(data) if prepare else make_manifest(data)
        cpu = time.process_time() - before  # of this process: the S3 server is a child of it
        everything = Images.of(dataclasses.replace(image, split="train") for image in found.images)
        uri = str(self.folder / f"{name}-manifest")
        write_format(uri, save_manifest(Manifest(found.classes, everything), uri))
        return Source(data, uri, len(everything), cpu / len(everything) * 1000)

    def upload(self) -> str:
        """The small photos in a bucket of the server that the environment names -> their location."""
        import boto3

        boto3.session.Session().client("s3").create_bucket(Bucket=BUCKET)
        location = f"s3://{BUCKET}/small"
        storage.upload_folder(self.photos["small"], location)
        return location

    def error(self, images: str, sample: Path) -> float:
        """Mean absolute difference of a program's first images to Pillow's, in grey levels of 255."""
        return self._references[images].error(np.load(sample))


class Reference:
    """Pillow's bilinear resize of all images. Programs may shuffle: an image is compared with the one it looks like."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._small = np.stack([_thumbnail(_by_pillow(path)) for path in paths])

    def error(self, found: np.ndarray) -> float:
        """found (N, 224, 224, 3) uint8"""
        errors = []
        for image in found:
            distances = np.abs(self._small - _thumbnail(image)).mean((1, 2, 3))
            expected = _by_pillow(self._paths[int(distances.argmin())])
            errors.append(np.abs(image.astype(np.int16) - expected).mean())
        return float(np.mean(errors))


def _by_pillow(path: Path) -> np.ndarray:
    """(224, 224, 3) uint8"""
    with PillowImage.open(path) as image:
        return np.asarray(image.convert("RGB").resize((SIZE, SIZE), PillowImage.Resampling.BILINEAR))


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """(224, 224, 3) uint8 -> (8, 8, 3) means"""
    side = SIZE // THUMBNAIL
    return image.reshape(THUMBNAIL, side, THUMBNAIL, side, 3).mean((1, 3))
