"""Whether there is anything to retrain for: what the data and the configuration are, without reading an image.

    listing = list_data(config.data)               # digest of names, classes, sizes and versions
    settings = settings_of(config)                 # the parts of the configuration that models are made from

A listing says for certain that nothing has changed. That something has, contents say: a copied or touched file has
another version and the same contents, which the manifest's fingerprint finds out when it is read.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tlray import storage
from tlray.config import DataConfig, RunConfig
from tlray.data.images import Images
from tlray.data.manifest import Manifest
from tlray.data.sources import Entry, open_source
from tlray.errors import ConfigError
from tlray.process.scratch import temporary_folder
from tlray.storage import parquet

# What a model is made from. The rest says where things are kept, how fast and with what, or is about `retrain` itself.
SECTIONS = ("seed", "backbones", "strategies", "training", "search_space", "known_recipe", "ranking", "warm_start")
FIELDS = {
    "data": ("val_fraction", "test_fraction", "split_seed", "max_side"),
    "activations": ("dtype", "precision"),
    "sweep": ("num_samples", "scheduler", "grace_period", "reduction_factor"),
    "budget": ("hours", "cost", "trials"),
}
KEY = ("uri", "version", "class_name")  # of an entry, by which two listings agree on an image
AT_ONCE = 8192  # entries
NUM_NAMED = 5  # changed settings in a message


def list_data(data: DataConfig) -> str:
    """sha256 of everything that the sources list: location's role, name, class, split, size and version.

    Images that a CSV or Parquet file on S3 names have no version there: of those it is the names that count.
    """
    digest = hashlib.sha256()
    for field, uri in locations_of(data).items():
        digest.update(json.dumps([field, uri, _version_of_file(uri)]).encode())
        for entry in open_source(field, uri, data).entries():
            row = [entry.uri, entry.class_name, entry.split, entry.num_bytes, _version(entry), entry.reason]
            digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def locations_of(data: DataConfig) -> dict[str, str]:
    """The locations by their names in the configuration; ConfigError for made-up images."""
    if data.train is None:
        raise ConfigError("data.synthetic never changes, so there is nothing to retrain for: name data.train")
    locations = {"data.train": data.train, "data.val": data.val, "data.test": data.test}
    return {field: uri for field, uri in locations.items() if uri is not None}


def all_still_there(manifest: Manifest, data: DataConfig) -> bool:
    """Whether every image of an earlier manifest is listed in the same version and class; more may have come."""
    assert isinstance(manifest.images, Images)
    wanted = manifest.images.table
    names = pa.array(manifest.classes).take(wanted["label"].combine_chunks())
    keys = _keys(wanted["uri"], wanted["version"], names)
    with temporary_folder("listing") as folder:
        path = folder / "listing.parquet"
        _write_keys(data, path)
        with parquet.open_file(path) as file:
            return bool(pc.all(pc.is_in(keys, value_set=parquet.read(file, ["key"])["key"])).as_py())


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The part of a configuration that decides which models can come of it, as JSON has it and as it is written.

    Ids are not resolved, which would take importing the libraries: another name of the same backbone is a change.
    """
    plain = config.model_dump(mode="json")
    chosen = {name: plain[name] for name in SECTIONS}
    chosen |= {section: {name: plain[section][name] for name in names} for section, names in FIELDS.items()}
    settings: dict[str, Any] = json.loads(json.dumps(chosen))  # as it comes back from a file: JSON's keys are strings
    return settings


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is not the same in two `settings_of`, for people: `training.lr 0.01 -> 0.001, seed 0 -> 1`."""
    old, new = dict(_flat(before)), dict(_flat(now))
    changed = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    shown = [f"{name} {_short(old, name)} -> {_short(new, name)}" for name in changed[:NUM_NAMED]]
    more = [f"{len(changed) - NUM_NAMED} more"] if len(changed) > NUM_NAMED else []
    return ", ".join(shown + more)


def _version_of_file(uri: str) -> str:
    """Of a location that is one file, which nobody lists; "" for a folder."""
    return storage.version_of(uri) if storage.exists(uri) else ""


def _version(entry: Entry) -> str:
    """As listed; of local images that a table names, from the disk, which is cheap there."""
    if entry.version or storage.is_remote(entry.uri) or not os.path.exists(entry.uri):
        return entry.version
    return storage.version_of(entry.uri)


def _write_keys(data: DataConfig, path: Path) -> None:
    schema = pa.schema([("key", pa.large_string())])
    with pq.ParquetWriter(path, schema) as writer:
        for batch in _batches(data):
            columns = (pa.array([getattr(entry, name) for entry in batch], pa.large_string()) for name in KEY)
            writer.write_batch(pa.record_batch([_keys(*columns)], schema=schema))


def _batches(data: DataConfig) -> Iterator[list[Entry]]:
    for field, uri in locations_of(data).items():
        batch: list[Entry] = []
        for entry in open_source(field, uri, data).entries():
            batch.append(entry)
            if len(batch) == AT_ONCE:
                yield batch
                batch = []
        yield batch


def _keys(*columns: pa.Array) -> pa.Array:
    texts = [column.cast(pa.large_string()) for column in columns]
    joined = pc.binary_join_element_wise(*texts, pa.scalar("\0", pa.large_string()))
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf; a list is one, an empty section none."""
    if not isinstance(tree, Mapping):
        yield prefix, tree
        return
    for name, value in tree.items():
        yield from _flat(value, f"{prefix}.{name}" if prefix else str(name))


def _short(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "(none)"
    text = json.dumps(values[name])
    return text if len(text) <= 60 else f"{text[:57]}..."
