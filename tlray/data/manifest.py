"""The images of a run: listed, read and checked once, then fixed. Nothing lists or judges them again.

    manifest = make_manifest(config.data)
    save_manifest(manifest, run_uri);  manifest = load_manifest(run_uri)

Which split an image goes to, and its place in the training order, depend on its contents and data.split_seed alone: a
local folder and its copy on S3 give the same run.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tlray import parquet, storage
from tlray.config import DataConfig
from tlray.data.gather import gather
from tlray.data.images import ID_BYTES, SPLITS, BadImage, Image, Images, Split, give_back_memory, id_bytes, id_column
from tlray.data.images import SCHEMA as IMAGES_SCHEMA
from tlray.data.inspect import OK, Keep, Known, KnownTable
from tlray.runs.folder import BAD_IMAGES, MANIFEST, open_verified
from tlray.runs.sealed import write_checked
from tlray.scratch import temporary_folder

__all__ = ["BadImage", "Image", "Images", "Manifest", "Split", "load_manifest", "make_manifest", "save_manifest"]

AT_ONCE = 2**13  # rows of the file that are in memory together
SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("label", pa.int32()),
        ("split", pa.string()),
        ("content_id", pa.string()),
        ("bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("status", pa.string()),  # "ok", or why the image was left out
        ("version", pa.string()),
        ("shard", pa.string()),
        ("row", pa.int32()),
    ]
)


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


def save_manifest(manifest: Manifest, run_uri: str) -> dict[str, str]:
    """Write bad_images.jsonl and manifest.parquet into the run folder -> sha256 by name, for its format."""
    checksums = {BAD_IMAGES: save_bad_images(manifest, run_uri)}
    metadata = {
        "classes": json.dumps(manifest.classes),
        "fingerprint": manifest.fingerprint,
        "notes": json.dumps(manifest.notes),
        "warnings": json.dumps(manifest.warnings),
    }
    with temporary_folder("manifest") as folder:
        schema = SCHEMA.with_metadata(metadata)
        with pq.ParquetWriter(folder / MANIFEST, schema) as writer:
            for batch in _file_batches(manifest):
                writer.write_batch(batch.cast(schema))
        with (folder / MANIFEST).open("rb") as file:
            checksums[MANIFEST] = hashlib.file_digest(file, "sha256").hexdigest()
        storage.upload_folder(folder, run_uri)
    return checksums


def save_bad_images(manifest: Manifest, run_uri: str) -> str:
    """bad_images.jsonl, for people and other programs -> its sha256."""
    lines = [json.dumps({"uri": image.uri, "reason": image.reason}, ensure_ascii=False) for image in manifest.bad]
    return write_checked(storage.join(run_uri, BAD_IMAGES), "".join(line + "\n" for line in lines).encode())


def load_manifest(run_uri: str) -> Manifest:
    """The manifest of a run folder, equal to the one saved; DamagedError."""
    with open_verified(run_uri, MANIFEST) as path, path.open("rb") as stream, parquet.open_file(stream) as file:
        metadata = file.schema_arrow.metadata
        classes, notes, warnings = (tuple(json.loads(metadata[key])) for key in (b"classes", b"notes", b"warnings"))
        usable = pc.equal(parquet.read(file, ["status"]).column(0), OK).combine_chunks()
        columns = [_column(file, field, usable) for field in IMAGES_SCHEMA]
        left_out = parquet.read(file, ["uri", "status"]).filter(pc.invert(usable)) if usable.false_count else None
    bad = zip(left_out["uri"].to_pylist(), left_out["status"].to_pylist(), strict=True) if left_out else ()
    images = Images(pa.table(columns, schema=IMAGES_SCHEMA))
    return Manifest(classes, images, tuple(BadImage(*one) for one in bad), notes, warnings)


def _file_batches(manifest: Manifest) -> Iterator[pa.RecordBatch]:
    """The rows of manifest.parquet: images, then bad ones."""
    names = pa.array(SPLITS)
    for batch in manifest._columns.table.to_batches(max_chunksize=AT_ONCE):
        columns = {name: batch.column(name) for name in batch.schema.names}
        data = id_bytes(columns["content_id"]).tobytes().hex()
        columns["content_id"] = pa.array([data[at : at + 2 * ID_BYTES] for at in range(0, len(data), 2 * ID_BYTES)])
        columns["split"] = names.take(columns["split"])
        columns["bytes"] = columns["num_bytes"]
        columns["status"] = pa.array([OK] * len(batch))
        yield pa.record_batch([columns[field.name].cast(field.type) for field in SCHEMA], schema=SCHEMA)
    if manifest.bad:
        found = {"uri": [image.uri for image in manifest.bad], "status": [image.reason for image in manifest.bad]}
        empty = [None] * len(manifest.bad)
        values = [pa.array(found.get(field.name, empty), field.type) for field in SCHEMA]
        yield pa.record_batch(values, schema=SCHEMA)


def _column(file: parquet.ParquetFile, field: pa.Field, usable: pa.BooleanArray) -> pa.Array:
    """One of a manifest's columns, of the rows that are usable; read and converted in pieces, as all of it is large."""
    name = "bytes" if field.name == "num_bytes" else field.name
    give_back_memory()
    pieces, start = [pa.array([], field.type)], 0
    for batch in parquet.batches(file, AT_ONCE, [name]):
        values = batch.column(0).filter(usable.slice(start, len(batch)))
        start += len(batch)
        if name == "content_id":
            values = id_column(values.to_pylist())
        elif name == "split":
            values = pc.index_in(values, value_set=pa.array(SPLITS))
        pieces.append(values.cast(field.type))
    return pa.concat_arrays(pieces)
