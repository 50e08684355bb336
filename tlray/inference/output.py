"""The folder that a batch prediction writes to.

<output>/
  prediction.json                    what is predicted: the model's version, its classes, the images' locations
  predictions/part-<name>.parquet    one row an image, a file a part; each is there whole or not at all
  bad_images.jsonl                   uri and reason of each image without a prediction
  summary.json                       written last

`prediction.json` is created once and binds the folder: predictions of another model, or of images elsewhere, are
refused. A part is named by its images, so what is in predictions/ is what has been done.
"""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from tlray import storage
from tlray.errors import InputError
from tlray.process.scratch import temporary_folder
from tlray.storage import parquet
from tlray.storage.stores.folder import for_each, list_or_none, name_of, read_or_none

FORMAT_VERSION = 1
BAD_IMAGES = "bad_images.jsonl"
PREFIX, SUFFIX = "part-", ".parquet"
NUM_BAD = b"tlray.num_bad"
PARTS_AT_ONCE = 256  # whose bad images are in memory together

NAMES = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("class", NAMES),  # the most probable; null, like all that follows from it, where `error` says why
        ("confidence", pa.float32()),  # its probability
        ("probabilities", pa.list_(pa.float32())),  # in the order of the classes in the schema's metadata
        ("model_version", NAMES),
        ("error", pa.string()),
    ]
)


class ModelFacts(BaseModel):
    """The export that predicts."""

    model_config = ConfigDict(frozen=True)

    uri: str
    version: str  # sha256 of the export's SHA256SUMS: another one with any change to any of its files
    classes: tuple[str, ...]


class PredictionSpec(BaseModel):
    """prediction.json"""

    model_config = ConfigDict(frozen=True)

    format_version: int = FORMAT_VERSION
    model: ModelFacts
    images: tuple[str, ...]  # locations as given, absolute


@dataclass(frozen=True)
class PredictionSummary:
    """What is in the folder, and what this start did for it; summary.json holds it too."""

    output: str
    model: str
    model_version: str
    num_images: int
    num_bad: int
    num_parts: int
    images_computed: int  # by this start
    parts_computed: int
    parts_removed: int  # of images that have changed or are gone since an earlier start
    seconds: float  # of this start, from the listing on
    images_per_second: float


class PredictionOutput:
    """The folder at `uri`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._spec = storage.join(uri, "prediction.json")
        self._parts = storage.join(uri, "predictions")
        self._summary = storage.join(uri, "summary.json")
        self.bad_images = storage.join(uri, BAD_IMAGES)

    def begin(self, prediction: PredictionSpec) -> None:
        """Bind the folder to what is predicted; InputError where it is bound to something else."""
        if not storage.create_exclusive(self._spec, prediction.model_dump_json(indent=1).encode()):
            self.check(prediction)

    def check(self, prediction: PredictionSpec) -> None:
        """InputError where the folder is bound to something else; nothing where it is not bound."""
        data = read_or_none(self._spec)
        if data is None:
            return
        found = storage.parse_object(data, self._spec)
        if found.get("format_version") != FORMAT_VERSION:
            raise InputError(f"{self.uri} was written by another version of tlray: give another --output")
        before = PredictionSpec.model_validate(found)
        if before.model.version != prediction.model.version:
            raise InputError(
                f"{self.uri} holds predictions of another model, {before.model.uri} (version "
                f"{before.model.version[:12]}, now {prediction.model.version[:12]}): give another --output"
            )
        if sorted(before.images) != sorted(prediction.images):
            raise InputError(
                f"{self.uri} holds predictions of other images, {', '.join(before.images)}: give another --output"
            )

    def part(self, name: str) -> str:
        return storage.join(self._parts, f"{PREFIX}{name}{SUFFIX}")

    def parts_there(self) -> set[str]:
        """Names of the parts that are done."""
        files = (name_of(file.uri) for file in list_or_none(self._parts))
        return {file[len(PREFIX) : -len(SUFFIX)] for file in files if file.startswith(PREFIX) and file.endswith(SUFFIX)}

    def remove(self, names: Iterable[str]) -> None:
        """Parts that hold what is no longer listed."""
        for_each(lambda name: storage.delete(self.part(name)), names, remote=storage.is_remote(self.uri))

    def reopen(self) -> None:
        """What is about to be computed belongs to no summary."""
        storage.delete(self._summary)

    def summary(self) -> PredictionSummary | None:
        """That of the start that finished; None while there is something left to do."""
        data = read_or_none(self._summary)
        return None if data is None else PredictionSummary(**storage.parse_object(data, self._summary))

    def finish(self, summary: PredictionSummary) -> None:
        storage.write_text(self._summary, json.dumps(vars(summary), indent=1))

    def write_bad_images(self, names: Iterable[str]) -> int:
        """bad_images.jsonl of these parts, in their order -> how many there are."""
        num_bad = 0
        remote = storage.is_remote(self.uri)
        with temporary_folder("bad-images") as folder:
            with (folder / BAD_IMAGES).open("w") as file:
                for some in _batches(names):
                    for rows in for_each(self._bad_images, some, remote=remote):
                        num_bad += len(rows)
                        file.writelines(json.dumps(row) + "\n" for row in rows)
            storage.upload_folder(folder, self.uri)
        return num_bad

    def _bad_images(self, name: str) -> list[dict[str, str]]:
        """Read from a part's footer alone where it has none."""
        with storage.open_file(self.part(name)) as stream, parquet.open_file(stream) as file:
            if int((file.schema_arrow.metadata or {}).get(NUM_BAD, 0)) == 0:
                return []
            rows = parquet.read(file, ["uri", "error"]).to_pylist()
        return [{"uri": row["uri"], "reason": row["error"]} for row in rows if row["error"] is not None]


def part_bytes(uris: pa.Array, errors: list[str | None], probabilities: np.ndarray, model: ModelFacts) -> bytes:
    """A part as a Parquet file. probabilities (N, C) float32, whose rows do not count where there is an error."""
    good = np.array([error is None for error in errors], dtype=bool)
    best = probabilities.argmax(axis=1) if len(errors) else np.zeros(0, dtype=np.int64)
    confidence = probabilities[np.arange(len(errors)), best]
    offsets = np.concatenate([[0], np.cumsum(good * probabilities.shape[1])]).astype(np.int32)
    columns = [
        uris,
        pa.DictionaryArray.from_arrays(pa.array(best, pa.int32(), mask=~good), pa.array(model.classes, pa.string())),
        pa.array(confidence, pa.float32(), mask=~good),
        pa.ListArray.from_arrays(offsets, pa.array(probabilities[good].reshape(-1)), mask=pa.array(~good)),
        pa.DictionaryArray.from_arrays(np.zeros(len(errors), dtype=np.int32), pa.array([model.version])),
        pa.array(errors, pa.string()),
    ]
    metadata = {
        b"tlray.classes": json.dumps(model.classes).encode(),
        b"tlray.model": model.uri.encode(),
        b"tlray.model_version": model.version.encode(),
        NUM_BAD: str(int((~good).sum())).encode(),
    }
    sink = io.BytesIO()
    names = [name for name in SCHEMA.names if pa.types.is_dictionary(SCHEMA.field(name).type)]
    table = pa.table(columns, schema=SCHEMA.with_metadata(metadata))
    pq.write_table(table, sink, compression="zstd", use_dictionary=names)
    return sink.getvalue()


def _batches(names: Iterable[str]) -> Iterator[list[str]]:
    remaining = list(names)
    for start in range(0, len(remaining), PARTS_AT_ONCE):
        yield remaining[start : start + PARTS_AT_ONCE]
