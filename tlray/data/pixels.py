"""Decoded images as the evaluation transform leaves them, in one file on a node's disk: no epoch decodes them again.

    def draw(rows):                                         # of `content_ids`, each different one once
        return load_draws([images[row] for row in rows], preprocessing, "none", 0, num_threads=2)

    with PixelStore.open("~/.cache/tlray/pixels", content_ids, preprocessing, draw) as pixels:
        rows = pixels.rows_of(content_ids)                  # (N,) int64
        batch = pixels.gather(rows[:32])                    # (32, 3, H, W) uint8, a copy
        image = pixels.images[rows[0]]                      # (3, H, W) uint8, the memory of the map

The first process of a node that asks writes the file, the others wait for it. It is a .npy file of (M, 3, H, W) uint8,
by content id, and visible only when it is whole.

`gather` reads instead of copying out of the map: 0.015 ms an image of 224 px, of which 0.009 is the copy itself, into
memory that is used again. A map would be as fast, but what is read through it stays resident until it is given back,
which brings it to 0.022 ms.
"""

import hashlib
import io
import json
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from importlib.metadata import version
from io import BufferedReader
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from tlray.catalogue import Preprocessing
from tlray.data.reused import ReusedArrays
from tlray.errors import DataError
from tlray.storage.stores.node_files import NodeFiles, Purpose

PIXELS_VERSION = 1  # to be raised when `decode` or `eval_transform` gives other pixels
DECODERS = ("pillow", "simplejpeg", "torchvision")  # packages whose next version may give other pixels
SUFFIX = ".npy"

DECODED_PIXELS = Purpose(
    contents="the decoded pixels",
    suffix=SUFFIX,
    folder_setting="data.cache",
    limit_setting="data.pixels_max_gb",
    error=DataError,
    let_go=lambda: None,
)


class PixelStore:
    """The images of one set for one preprocessing. Threads may share it; a process opens its own."""

    def __init__(self, file: BufferedReader, content_ids: np.ndarray, shape: tuple[int, int, int]) -> None:
        """content_ids (M,) S64, sorted, each once; `open` is what makes and finds the file."""
        self._file = file  # locked against eviction while it is open
        self._content_ids = content_ids
        self._shape = shape
        self._start = len(_header(len(content_ids), shape))
        self._arrays = ReusedArrays()

    @classmethod
    def open(
        cls,
        folder: str,
        content_ids: Sequence[str],
        preprocessing: Preprocessing,
        draw: Callable[[Sequence[int]], Iterable[torch.Tensor]],
        max_bytes: int | None = None,
    ) -> "PixelStore":
        """The store of these images, written first where the node has none; the same for any order of the images.

        draw(rows) gives (3, H, W) uint8 for content_ids[row] of each of the rows, in order. max_bytes: of all files of
        the folder together; those not used for longest make room. DataError when they cannot, or the disk is full.
        """
        shape = (3, *preprocessing.input_size)
        unique, first = np.unique(np.array(content_ids, "S64"), return_index=True)
        header = _header(len(unique), shape)
        num_bytes = len(header) + len(unique) * int(np.prod(shape))
        name = f"pixels/{_key(unique, preprocessing)}{SUFFIX}"
        file = NodeFiles(folder, max_bytes, DECODED_PIXELS).open(
            name,
            num_bytes,
            partial(_is_whole, header=header, num_bytes=num_bytes),
            lambda path: _write(path, header, shape, draw(first.tolist()), num_bytes),
        )
        return cls(file, unique, shape)

    def __enter__(self) -> "PixelStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Different images."""
        return len(self._content_ids)

    def rows_of(self, content_ids: Sequence[str]) -> np.ndarray:
        """Where each image lies (N,) int64; DataError for one that is not there."""
        wanted = np.array(content_ids, "S64")
        rows = np.searchsorted(self._content_ids, wanted)
        there = rows < len(self)
        there[there] = self._content_ids[rows[there]] == wanted[there]
        if not there.all():
            missing = content_ids[int(np.flatnonzero(~there)[0])]
            raise DataError(f"{self._file.name} holds no image {missing}: remove the file, and it is written anew")
        return rows

    def gather(self, rows: np.ndarray) -> torch.Tensor:
        """A copy of some images (B, 3, H, W) uint8; rows (B,) int. DataError when the disk fails."""
        images = self._arrays.take((len(rows), *self._shape))
        num_bytes = int(np.prod(self._shape))
        descriptor = self._file.fileno()
        for place, row in enumerate(rows.tolist()):
            if not 0 <= row < len(self):
                raise IndexError(row)
            if os.preadv(descriptor, [images[place].data], self._start + row * num_bytes) != num_bytes:
                raise DataError(f"{self._file.name} has become shorter: remove the file, and it is written anew")
        return torch.from_numpy(images)

    @cached_property
    def images(self) -> torch.Tensor:
        """All images (M, 3, H, W) uint8, mapped: what is read stays in this process's memory. Do not write to it.

        It outlives `close`.
        """
        # copy on write, as torch has no tensors that are read-only; the file itself is never written to
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        images = np.frombuffer(mapped, np.uint8, offset=self._start)
        return torch.from_numpy(images.reshape(len(self), *self._shape))

    def close(self) -> None:
        """Let the file be evicted from this node."""
        self._file.close()


def _key(content_ids: np.ndarray, preprocessing: Preprocessing) -> str:
    """The name of the file: all that the pixels depend on."""
    fields = preprocessing.to_dict()
    del fields["std"]  # pixels are normalised later; the mean colour may be a border
    spec = {
        "preprocessing": fields,
        "version": PIXELS_VERSION,
        "packages": [version(package) for package in DECODERS],
        "images": hashlib.sha256(content_ids.tobytes()).hexdigest(),
    }
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:32]


def _header(num_images: int, shape: tuple[int, ...]) -> bytes:
    """What a .npy file starts with."""
    header = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": (num_images, *shape)}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()


def _is_whole(file: BufferedReader, *, header: bytes, num_bytes: int) -> bool:
    """Whether the file has the right start and size; it got its name when it was whole and on the disk."""
    file.seek(0)
    return os.fstat(file.fileno()).st_size == num_bytes and file.read(len(header)) == header


def _write(path: Path, header: bytes, shape: tuple[int, ...], images: Iterable[torch.Tensor], num_bytes: int) -> None:
    with path.open("wb") as file:
        file.write(header)
        for image in images:
            assert image.shape == shape, f"an image of {tuple(image.shape)} where {shape} are kept"
            assert image.dtype == torch.uint8
            file.write(image.contiguous().numpy().data)
        assert file.tell() == num_bytes, "one image for each row"
        file.flush()
        os.fsync(file.fileno())
