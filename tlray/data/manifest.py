"""The images of a run: listed, read and checked once, then fixed. Nothing lists or judges them again.

    manifest = make_manifest(config.data, config.seed)
    save_manifest(manifest, run_uri);  manifest = load_manifest(run_uri)

An image's class is the folder right below the location that it lies in. Which split it goes to, and its place in the
training order, depend on its contents and the seed alone: a local folder and its copy on S3 give the same run.
"""

import fnmatch
import hashlib
import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from tlray import storage
from tlray.config import DataConfig
from tlray.data.decode import BadImageError, decode
from tlray.data.parallel import ordered_map
from tlray.errors import DataError, StorageError, nearest

Split = Literal["train", "val", "test"]
NUM_THREADS = 8  # at least, as most of the time is spent waiting where images come over a network
AHEAD_PER_THREAD = 16  # results kept until they are collected; they are small
NUM_REASONS = 3  # quoted when there are too many bad images
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
    ]
)


@dataclass(frozen=True, slots=True)
class Image:
    """An image that can be used."""

    uri: str
    label: int  # index into the manifest's classes
    split: Split
    content_id: str  # sha256 of the file, hexadecimal
    num_bytes: int
    width: int  # pixels, as shown: after the EXIF orientation
    height: int


@dataclass(frozen=True, slots=True)
class BadImage:
    uri: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """Images sorted by split, label and content; classes sorted by name; what could not be used."""

    classes: tuple[str, ...]
    images: tuple[Image, ...]
    bad: tuple[BadImage, ...] = ()

    def split(self, name: Split) -> tuple[Image, ...]:
        return self._by_split.get(name, ())

    @property
    def num_leaked(self) -> int:
        """Images of val and test that are in train too, byte for byte; only locations given by the user have any."""
        train = {image.content_id for image in self.split("train")}
        return sum(image.content_id in train for image in (*self.split("val"), *self.split("test")))

    @cached_property
    def _by_split(self) -> dict[str, tuple[Image, ...]]:
        groups = defaultdict(list)
        for image in self.images:
            groups[image.split].append(image)
        return {name: tuple(images) for name, images in groups.items()}


@dataclass(frozen=True, slots=True)
class _Read:
    """A file of a class folder after a look into it; `reason` is empty when it is an image."""

    field: str  # data.train, data.val, data.test: where the configuration names its location
    uri: str
    class_name: str
    reason: str = ""
    content_id: str = ""
    num_bytes: int = 0
    width: int = 0
    height: int = 0


def make_manifest(data: DataConfig, seed: int) -> Manifest:
    """List, read, decode and split the images that `data` names.

    Val and test come from their own locations, or are split off train: stratified by class, at least one image per
    class and split, identical copies together. The classes are those of train; an own val or test may lack some of
    them (they are then just not measured there) but has no others.
    Raises DataError (nothing there, one class, too few of a class, too many bad) and StorageError (no access).
    """
    assert data.train is not None, "synthetic images are made, and become ordinary locations, before this"
    locations = {"data.train": data.train, "data.val": data.val, "data.test": data.test}
    files = [file for field, uri in locations.items() if uri is not None for file in _list(field, uri, data.exclude)]
    classes = _check_classes(files, data.train)
    threads = max(data.num_threads, NUM_THREADS)
    read = list(ordered_map(_read, files, num_threads=threads, ahead=threads * AHEAD_PER_THREAD))
    bad = [BadImage(file.uri, file.reason) for file in read if file.reason]
    _check_bad(bad, len(read), data.max_bad_fraction)

    good: dict[str, list[_Read]] = defaultdict(list)
    for file in read:
        if not file.reason:
            good[file.field].append(file)
    fractions = {
        "test": data.test_fraction if data.test is None else 0.0,
        "val": data.val_fraction if data.val is None else 0.0,
    }
    splits = _split_off(good["data.train"], classes, fractions, seed)
    label_of = {name: label for label, name in enumerate(classes)}
    images = [
        Image(
            uri=file.uri,
            label=label_of[file.class_name],
            split=splits[file.content_id] if field == "data.train" else field.removeprefix("data."),  # type: ignore[arg-type]
            content_id=file.content_id,
            num_bytes=file.num_bytes,
            width=file.width,
            height=file.height,
        )
        for field, files_of_field in good.items()
        for file in files_of_field
    ]
    images.sort(key=lambda image: (image.split, image.label, image.content_id, image.uri))
    return Manifest(tuple(classes), tuple(images), tuple(sorted(bad, key=lambda image: image.uri)))


def save_manifest(manifest: Manifest, run_uri: str) -> None:
    """Write bad_images.jsonl and then manifest.parquet into the run folder."""
    lines = [json.dumps({"uri": image.uri, "reason": image.reason}, ensure_ascii=False) for image in manifest.bad]
    storage.write_text(storage.join(run_uri, "bad_images.jsonl"), "".join(line + "\n" for line in lines))
    rows: list[tuple[object, ...]] = [
        (i.uri, i.label, i.split, i.content_id, i.num_bytes, i.width, i.height, "ok") for i in manifest.images
    ]
    rows += [(image.uri, None, None, None, None, None, None, image.reason) for image in manifest.bad]
    columns = [pa.array(values, field.type) for values, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)]
    schema = SCHEMA.with_metadata({"classes": json.dumps(manifest.classes)})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), sink)
    storage.write_bytes(storage.join(run_uri, "manifest.parquet"), sink.getvalue())


def load_manifest(run_uri: str) -> Manifest:
    """The manifest of a run folder, equal to the one saved."""
    uri = storage.join(run_uri, "manifest.parquet")
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(uri)))
        classes = tuple(json.loads(table.schema.metadata[b"classes"]))
    except (pa.ArrowInvalid, KeyError, TypeError):
        raise StorageError(f"{uri} is not a manifest that tlray wrote") from None
    images, bad = [], []
    for row in zip(*(table.column(name).to_pylist() for name in SCHEMA.names), strict=True):
        *fields, status = row
        if status == "ok":
            images.append(Image(*fields))
        else:
            bad.append(BadImage(fields[0], status))
    return Manifest(classes, tuple(images), tuple(bad))


def _list(field: str, uri: str, exclude: tuple[str, ...]) -> list[_Read]:
    """The files in class folders below one location; hidden ones, and those right in it, are not looked at."""
    location = storage.absolute(uri)
    files, num_outside = [], 0
    try:
        for info in storage.list_files(location):
            path = info.uri.removeprefix(location).lstrip("/")
            class_name, slash, _ = path.partition("/")
            if not slash:
                num_outside += 1
            elif not any(part.startswith(".") for part in path.split("/")) and not _matches(path, exclude):
                files.append(_Read(field, info.uri, class_name))
    except storage.NotFoundError:
        raise DataError(f"{field}: {location} does not exist") from None
    if not files:
        found = f"{num_outside} files lie right in it" if num_outside else "it is empty"
        raise DataError(f"{field}: {location} holds no class folders with images ({found}); expected CLASS/image.jpg")
    return files


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _check_classes(files: list[_Read], train: str) -> list[str]:
    """The classes of train, sorted; DataError when there is only one, or val or test has others."""
    classes = sorted({file.class_name for file in files if file.field == "data.train"})
    if len(classes) < 2:
        raise DataError(
            f"data.train: {train} has one class only, {classes[0]!r}; a classifier needs two folders or more"
        )
    for file in files:
        if file.class_name not in classes:
            hint = "".join(f"; did you mean {name!r}?" for name in nearest(file.class_name, classes))
            raise DataError(f"{file.field}: class {file.class_name!r} ({file.uri}) is not in data.train{hint}")
    return classes


def _read(file: _Read) -> _Read:
    """The file after reading and decoding it. Only a server that gives no access ends the run here."""
    try:
        file.uri.encode()
    except UnicodeEncodeError:
        shown = file.uri.encode("utf-8", "backslashreplace").decode()
        return _Read(file.field, shown, file.class_name, "its name is not valid UTF-8")
    try:
        data = storage.read_bytes(file.uri)
        height, width, _ = decode(data).shape
    except BadImageError as error:
        return _Read(file.field, file.uri, file.class_name, error.reason)
    except StorageError as error:
        if storage.is_remote(file.uri) and not isinstance(error, storage.NotFoundError):
            raise
        return _Read(file.field, file.uri, file.class_name, str(error).removeprefix(file.uri).strip(": "))
    content_id = hashlib.sha256(data).hexdigest()
    return _Read(file.field, file.uri, file.class_name, "", content_id, len(data), width, height)


def _check_bad(bad: list[BadImage], num_files: int, max_bad_fraction: float) -> None:
    if not bad or (len(bad) < num_files and len(bad) <= max_bad_fraction * num_files):
        return
    reasons = "; ".join(f"{image.uri}: {image.reason}" for image in bad[:NUM_REASONS])
    if len(bad) == num_files:
        raise DataError(f"none of the {num_files} files can be read as an image, for example {reasons}")
    needed = math.ceil(1000 * len(bad) / num_files) / 1000
    raise DataError(
        f"{len(bad)} of {num_files} images cannot be read, more than data.max_bad_fraction={max_bad_fraction:g} allows "
        f"(data.max_bad_fraction={needed:g} would go on without them), for example {reasons}"
    )


def _split_off(files: list[_Read], classes: list[str], fractions: dict[str, float], seed: int) -> dict[str, str]:
    """Content id -> split, for the images of data.train. `fractions` of each class go to the splits that it names.

    Contents are ranked by a hash of (seed, content), within their class; the first go to test, the next to val. One
    that is in several classes goes where the first class by name sends it, and the others count it there.
    """
    contents: dict[str, set[str]] = {name: set() for name in classes}
    for file in files:
        contents[file.class_name].add(file.content_id)
    wanted = {split: fraction for split, fraction in fractions.items() if fraction > 0}
    splits: dict[str, str] = {}
    for members in contents.values():
        there = Counter(splits[content] for content in members if content in splits)
        ranked = iter(sorted(members - splits.keys(), key=lambda content: _rank(seed, content)))
        for split, count in _quotas(len(members), wanted).items():
            splits |= dict.fromkeys(islice(ranked, max(0, count - there[split])), split)
        splits |= dict.fromkeys(ranked, "train")
    for name, members in contents.items():
        if {splits[content] for content in members} != {"train", *wanted}:
            raise DataError(
                f"data.train: class {name!r} has {len(members)} different readable images, which do not make one for "
                f"each of {', '.join(['train', *sorted(wanted)])}; add images or leave the class out with data.exclude"
            )
    return splits


def _quotas(num_images: int, fractions: dict[str, float]) -> dict[str, int]:
    """Images for each split: the fraction rounded, at least one, and at least one is left for train."""
    quotas = {split: max(1, round(fraction * num_images)) for split, fraction in fractions.items()}
    while sum(quotas.values()) >= num_images > len(quotas):
        quotas[max(quotas, key=lambda split: quotas[split])] -= 1
    return quotas


def _rank(seed: int, content_id: str) -> bytes:
    return hashlib.sha256(f"{seed}/{content_id}".encode()).digest()
