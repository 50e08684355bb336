"""The images of a run: listed, read and checked once, then fixed. Nothing lists or judges them again.

    manifest = make_manifest(config.data)
    save_manifest(manifest, run_uri);  manifest = load_manifest(run_uri)

Which split an image goes to, and its place in the training order, depend on its contents and data.split_seed alone: a
local folder and its copy on S3 give the same run.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.config import DataConfig
from tlray.data.gather import gather
from tlray.data.images import ID_BYTES, SPLITS, BadImage, Image, Images, Split, id_bytes, id_column
from tlray.data.inspect import Keep, Known, KnownTable

__all__ = ["BadImage", "Image", "Images", "Manifest", "Split", "make_manifest"]

AT_ONCE = 2**13  # rows of the file that are in memory together


@dataclass(frozen=True)
class Manifest:
    """Images sorted by split, label and content; classes in order; what could not be used; what a person should know.

    `images` is kept as columns (Images), whatever sequence it is made from.
    """

    classes: tuple[str, ...]
    images: Sequence[Image]
    bad: tuple[BadImage, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # of images in two splits or classes; every output that shows a score shows them

    def __post_init__(self) -> None:
        if not isinstance(self.images, Images):
            object.__setattr__(self, "images", Images.of(self.images))

    def split(self, name: Split) -> Images:
        if name not in self._by_split:
            self._by_split[name] = self._columns.of_split(name)
        return self._by_split[name]

    @property
    def num_leaked(self) -> int:
        """Images of val and test that are in train too, byte for byte; only splits given by the user have any."""
        columns = self._columns
        trains = columns.splits == SPLITS.index("train")
        ids = columns.table["content_id"]
        return pc.sum(pc.is_in(ids.filter(pa.array(~trains)), value_set=ids.filter(pa.array(trains)))).as_py() or 0

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the classes and of every image's contents, class and split; not of names and places."""
        table = self._columns.table.select(["split", "label", "content_id"])
        order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in table.column_names])
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for start in range(0, len(order), AT_ONCE):
            some = table.take(order[start : start + AT_ONCE])
            rows = np.empty(len(some), dtype=[("split", "i1"), ("label", "<i4"), ("content_id", "u1", ID_BYTES)])
            rows["split"], rows["label"] = some["split"].to_numpy(), some["label"].to_numpy()
            rows["content_id"] = id_bytes(some["content_id"])
            digest.update(rows.tobytes())
        return digest.hexdigest()

    def find(self, content_ids: Sequence[str]) -> dict[str, Image]:
        """The images of these contents, by content id; of identical copies the first."""
        wanted = id_column(list(content_ids))
        rows = pc.index_in(wanted, value_set=self._columns.table["content_id"]).drop_null()
        return {image.content_id: image for image in self._columns.at(rows.to_numpy())}

    def with_shards(self, index: pa.Table) -> "Manifest":
        """The same images with the places that `index` has for their contents: content_id (hexadecimal), shard, row."""
        prepared = id_column(index["content_id"].to_pylist())
        places = pc.index_in(self._columns.table["content_id"], value_set=prepared)
        shards = index["shard"].cast(pa.large_string()).take(places).fill_null("")
        rows = index["row"].cast(pa.int32()).take(places).fill_null(-1)
        table = self._columns.table.drop_columns(["shard", "row"])
        images = Images(table.append_column("shard", shards).append_column("row", rows))
        return replace(self, images=images)

    @property
    def _columns(self) -> Images:
        assert isinstance(self.images, Images)
        return self.images

    @cached_property
    def _by_split(self) -> dict[str, Images]:
        return {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Manifest, (self.classes, self.images, self.bad, self.notes, self.warnings)  # without what is cached


def make_manifest(data: DataConfig, *, known: Known | pa.Table | None = None, keep: Keep | None = None) -> Manifest:
    """List, read, check and split the images that `data` names.

    Val and test come from their own locations or from rows that say so, or are split off train by contents, identical
    copies together. The classes are those of train; an own val or test may lack some of them (they are then just not
    measured there) but has no others. What `known`, an earlier inspection, has of a file in the same version is not
    read again; `keep` is given every image that was read, with its bytes (see `inspect`).
    Raises DataError (nothing there, one class, an empty split, too many bad) and StorageError (no access).
    """
    found = gather(data, KnownTable(known) if isinstance(known, pa.Table) else known or {}, keep)
    return Manifest(found.classes, found.images, found.bad, found.notes, found.warnings)
