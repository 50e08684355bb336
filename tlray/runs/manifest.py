"""The manifest of a run folder: manifest.parquet, and bad_images.jsonl for people and other programs.

checksums = save_manifest(manifest, run_uri)      # for the folder's format
manifest = load_manifest(run_uri)                 # equal to the one saved
"""

import hashlib
import json
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tlray import storage
from tlray.data.images import ID_BYTES, SPLITS, BadImage, Images, give_back_memory, id_bytes, id_column
from tlray.data.images import SCHEMA as IMAGES_SCHEMA
from tlray.data.inspect import OK
from tlray.data.manifest import AT_ONCE, Manifest
from tlray.process.scratch import temporary_folder
from tlray.runs.folder import BAD_IMAGES, MANIFEST, open_verified
from tlray.storage import parquet
from tlray.storage.sealed import write_checked

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
