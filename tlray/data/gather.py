"""From a configuration's locations to a manifest's parts: list, check the classes, inspect, split, sort.

    gathered = gather(config.data)

Names go through a file on local disk and what was found of each image goes straight into columns, so that memory grows
by some 250 bytes an image and not by a Python object.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tlray.config import DataConfig
from tlray.data.class_names import alike
from tlray.data.images import SCHEMA, SPLITS, BadImage, Images, give_back_memory, id_bytes, id_column
from tlray.data.inspect import OK, Inspected, Keep, Known, inspect
from tlray.data.overlap import check_overlap, find_overlap, without_conflicts
from tlray.data.sources import Entry, Listing, Source, open_source, write_listing
from tlray.data.splits import check_counts, place
from tlray.errors import DataError, nearest
from tlray.process.scratch import temporary_folder
from tlray.storage import parquet

NUM_REASONS = 3  # quoted when there are too many bad images
AT_ONCE = 8192  # rows collected before they become columns
SORTED_BY = ("split", "label", "content_id", "uri")
Found = Iterator[tuple[Entry, Inspected]]


@dataclass(frozen=True)
class Gathered:
    classes: tuple[str, ...]
    images: Images
    bad: tuple[BadImage, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def gather(data: DataConfig, known: Known, keep: Keep | None) -> Gathered:
    """As make_manifest says, which this does the work of."""
    assert data.train is not None, "synthetic images are made, and become ordinary locations, before this"
    locations = {"data.train": data.train, "data.val": data.val, "data.test": data.test}
    sources = {field: open_source(field, uri, data) for field, uri in locations.items() if uri is not None}
    with temporary_folder("listing") as folder:
        listings = {field: write_listing(field, s, folder / f"{field}.parquet") for field, s in sources.items()}
        classes = _check_classes(listings, data.train)
        fractions = _fractions(data, listings["data.train"])
        found = _inspect_all(sources, listings, data, known, keep)
        path = folder / "found.parquet"
        bad = _collect(found, {name: label for label, name in enumerate(classes)}, path)
        bad.sort(key=lambda image: image.uri)
        _check_bad(bad, sum(listing.num_entries for listing in listings.values()), data.max_bad_fraction)
        images = _assemble(path, data.split_seed, fractions)
    overlap = find_overlap(images, classes)
    check_overlap(overlap, data)
    images, left_out = without_conflicts(images, overlap)
    notes = tuple(
        f"{field}: {line}"
        for field, source in sources.items()
        for line in (_understood(source.description, listings[field]), *source.remarks.lines())
    )
    notes += alike(classes) + check_counts(classes, _counts(images, classes), data)
    return Gathered(tuple(classes), images, (*bad, *left_out), notes, overlap.warnings())


def _understood(description: str, listing: Listing) -> str:
    """What a location was found to be, with the splits that it says itself."""
    splits = ", ".join(f"{listing.splits[name]} {name}" for name in ("train", "val", "test") if listing.splits[name])
    return description + (f"; its own splits are followed: {splits}" if splits else "")


def _check_classes(listings: Mapping[str, Listing], train: str) -> list[str]:
    """The classes of train in order; DataError when there is only one, or val or test has others."""
    names = listings["data.train"].classes
    if not names:
        reasons = islice((entry for entry in listings["data.train"] if entry.reason), NUM_REASONS)
        quoted = "; ".join(f"{entry.uri}: {entry.reason}" for entry in reasons)
        raise DataError(f"data.train: nothing in {train} has a class, for example {quoted}")
    if len(names) == 1:
        raise DataError(
            f"data.train: {train} has one class only, {next(iter(names))!r}; a classifier needs two or more"
        )
    for field, listing in listings.items():
        for name, uri in listing.classes.items():
            if name not in names:
                hint = "".join(f"; did you mean {near!r}?" for near in nearest(name, names))
                raise DataError(f"{field}: class {name!r} ({uri}) is not in data.train{hint}")
    whole_numbers = all(name.isdecimal() and str(int(name)) == name for name in names)
    return sorted(names, key=int) if whole_numbers else sorted(names)


def _fractions(data: DataConfig, train: Listing) -> dict[str, float]:
    """What is split off train for val and test; nothing for one that has images of its own."""
    fractions = {}
    for split in ("val", "test"):
        own, rows = getattr(data, split), train.splits[split]
        if own is not None and rows:
            raise DataError(
                f"data.{split}: {own} is given, but {rows} images of data.train are {split} too, as its own folders or "
                "rows say: keep one of them"
            )
        fractions[split] = 0.0 if own is not None or rows else getattr(data, f"{split}_fraction")
    return fractions


def _inspect_all(
    sources: Mapping[str, Source], listings: Mapping[str, Listing], data: DataConfig, known: Known, keep: Keep | None
) -> Found:
    for field, source in sources.items():
        yield from inspect(source, listings[field], known=known, num_threads=data.num_threads, keep=keep)


def _collect(found: Found, label_of: Mapping[str, int], path: Path) -> list[BadImage]:
    """Writes usable images to a Parquet file like a manifest, split -1 where it is not decided -> the others."""
    bad: list[BadImage] = []
    with pq.ParquetWriter(path, SCHEMA, use_dictionary=["label", "split"]) as writer:
        while some := list(islice(found, AT_ONCE)):
            bad += [BadImage(entry.uri, what.status) for entry, what in some if what.status != OK]
            good = [(entry, what) for entry, what in some if what.status == OK]
            values = {
                "uri": [entry.uri for entry, _ in good],
                "label": [label_of[entry.class_name] for entry, _ in good],
                "split": [_given_split(entry) for entry, _ in good],
                "content_id": id_column([what.content_id for _, what in good]),
                "num_bytes": [what.num_bytes for _, what in good],
                "width": [what.width for _, what in good],
                "height": [what.height for _, what in good],
                "version": [entry.version for entry, _ in good],
                "shard": [""] * len(good),
                "row": [-1] * len(good),
            }
            columns = [pa.array(values[field.name], field.type) for field in SCHEMA]
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
    return bad


def _given_split(entry: Entry) -> int:
    """The code of the split that the location or the source says; -1 for what is to be split off train, or stay."""
    name = entry.split or entry.field.removeprefix("data.")
    return -1 if name == "train" else SPLITS.index(name)


def _check_bad(bad: Sequence[BadImage], num_files: int, max_bad_fraction: float) -> None:
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


def _assemble(path: Path, split_seed: int, fractions: Mapping[str, float]) -> Images:
    """The collected images, split and sorted. Columns are read one by one, so that only one is there twice."""
    with parquet.open_file(path) as file:
        splits = _splits(file, split_seed, fractions)
        keys = pa.table({name: splits if name == "split" else _column(file, name) for name in SORTED_BY})
        order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in SORTED_BY])
        del keys
        columns = [(splits if field.name == "split" else _column(file, field.name)).take(order) for field in SCHEMA]
    return Images(pa.table(columns, schema=SCHEMA))


def _splits(file: parquet.ParquetFile, split_seed: int, fractions: Mapping[str, float]) -> pa.Array:
    """The column of splits with every one decided."""
    pieces = [pa.array([], pa.int8())]
    for batch in parquet.batches(file, AT_ONCE, ["split", "content_id"]):
        placed = place(
            id_bytes(batch.column("content_id")),
            split_seed=split_seed,
            test_fraction=fractions["test"],
            val_fraction=fractions["val"],
        )
        codes = batch.column("split").to_numpy()
        pieces.append(pa.array(np.where(codes < 0, placed, codes)))
    return pa.concat_arrays(pieces)


def _column(file: parquet.ParquetFile, name: str) -> pa.Array:
    give_back_memory()
    chunks = parquet.read(file, [name]).column(0).chunks
    return pa.concat_arrays([pa.array([], SCHEMA.field(name).type), *chunks])


def _counts(images: Images, classes: Sequence[str]) -> np.ndarray:
    """Different images of each class and split -> (num_classes, 3), splits by code."""
    counts = np.zeros((len(classes), len(SPLITS)), dtype=np.int64)
    if len(images):
        ids, labels, splits = images.content_ids.view(np.uint64), images.labels, images.splits
        new = (ids[1:] != ids[:-1]).any(axis=1) | (labels[1:] != labels[:-1]) | (splits[1:] != splits[:-1])
        first = np.flatnonzero(np.concatenate([[True], new]))
        np.add.at(counts, (labels[first], splits[first]), 1)
    return counts
