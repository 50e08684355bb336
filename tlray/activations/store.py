"""The store of activations: what frozen blocks compute for an image, kept by key and read by every trial that needs it.

    store = ActivationStore("s3://bucket/activations", cache="~/.cache/tlray/activations")
    with store.lease(run_id, [key]):
        store.write_shard(key, content_ids, [features], run=run_id)      # features (N, 512) float16
        reader = store.reader(key, content_ids)
        (batch,) = reader.read(np.arange(32))                            # (32, 512) float16

A shard is written under a name of its own, then its index entry with a conditional put: that makes it visible, whole,
and once. What a killed writer leaves is a data object that no entry names. Layout and eviction: tlray/storage/stores.
"""

import hashlib
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np

from tlray import storage
from tlray.activations.errors import ActivationError, DamagedShardError
from tlray.activations.index import (
    ENTRY_NAME,
    ActivationIndex,
    Shard,
    ShardEntry,
    entry_json,
    entry_name,
    odd_ones,
    pack_ids,
    parse_entry,
    shard_id,
)
from tlray.activations.keys import ActivationKey
from tlray.activations.local_cache import LocalCache
from tlray.activations.reader import ActivationReader
from tlray.activations.shard import ShardMap, ShardMismatch, map_shard, serialise
from tlray.storage.stores import eviction, lease
from tlray.storage.stores.eviction import Usage
from tlray.storage.stores.folder import ShardFolder, for_each, list_or_none, name_of, read_or_none, used_now

__all__ = ["ActivationIndex", "ActivationReader", "ActivationStore", "Usage"]

REMEMBERED_IMAGES = 2_000_000  # in indexes that are kept in memory, at 100 bytes each
CHECKED_AT_ONCE = 2**20  # numbers


class ActivationStore:
    """A folder or an s3:// prefix of activations; processes and machines may share it."""

    def __init__(
        self, uri: str, *, cache: str, max_bytes: int | None = None, cache_max_bytes: int | None = None
    ) -> None:
        """cache: a local folder for copies of a remote store's shards; a local store is read in place."""
        self.uri = storage.absolute(uri)
        self._remote = storage.is_remote(self.uri)
        self._cache = LocalCache(cache, cache_max_bytes) if self._remote else None
        self._max_bytes = max_bytes
        self._indexes: OrderedDict[str, tuple[dict[str, str], ActivationIndex]] = OrderedDict()
        self._indexes_lock = threading.Lock()

    # --- what there is

    def index(self, key: ActivationKey) -> ActivationIndex:
        """A snapshot of what is committed. Entries that are not sound are removed: their shards count as missing."""
        folder = self._folder(key)
        listed = {
            file.uri: file.version for file in list_or_none(folder.index) if ENTRY_NAME.fullmatch(name_of(file.uri))
        }
        with self._indexes_lock:
            versions, known = self._indexes.get(key.digest, ({}, ActivationIndex(())))
        if versions == listed:
            return known
        kept = {folder.entry(entry_name(entry.id)): entry for entry in known.entries}
        kept = {uri: entry for uri, entry in kept.items() if versions.get(uri) == listed.get(uri)}
        read = for_each(partial(self._read_entry, key), [uri for uri in listed if uri not in kept], remote=self._remote)
        entries = [*kept.values(), *(entry for entry in read if entry is not None)]
        odd = odd_ones(entries)
        for_each(partial(self._remove_entry, key), odd, remote=self._remote)
        index = ActivationIndex(entry for entry in entries if entry not in odd)
        sound = {folder.entry(entry_name(entry.id)) for entry in index.entries}
        self._remember(key, {uri: version for uri, version in listed.items() if uri in sound}, index)
        return index

    def has_shard(self, key: ActivationKey, content_ids: Iterable[str]) -> bool:
        """Whether there is a shard of exactly these images."""
        return storage.exists(self._folder(key).entry(entry_name(shard_id(content_ids))))

    def missing(self, key: ActivationKey, content_ids: Sequence[str]) -> list[str]:
        """Those of the images that no shard holds, in the order given."""
        shards, _ = self.index(key).locate(content_ids)
        return [content_ids[position] for position in np.flatnonzero(shards < 0).tolist()]

    def total_bytes(self) -> int:
        """Of all files of the store."""
        return sum(file.size for files in eviction.files_by_digest(self.uri).values() for file in files)

    def usage(self) -> dict[str, Usage]:
        """By the digest of the key."""
        return eviction.usage(self.uri)

    # --- writing and reading

    def write_shard(
        self, key: ActivationKey, content_ids: Sequence[str], values: Sequence[np.ndarray], *, run: str
    ) -> bool:
        """Store the activations of N images; True when this call made them visible, False when they were there.

        values: one array (N, ...) for each value at the cut, of the key's dtype and finite, or ActivationError.
        """
        _check(key, content_ids, values)
        shapes = [value.shape[1:] for value in values]
        return self.write_image(key, content_ids, memoryview(serialise(values)), shapes, run=run)

    def write_image(
        self,
        key: ActivationKey,
        content_ids: Sequence[str],
        data: memoryview,
        shapes: Sequence[tuple[int, ...]],
        *,
        run: str,
    ) -> bool:
        """`write_shard` for a file that is made already, of activations that are known to be finite."""
        folder, name = self._folder(key), shard_id(content_ids)
        if storage.exists(folder.entry(entry_name(name))):
            return False
        if storage.create_exclusive(folder.spec, json.dumps(key.spec(), indent=1).encode()):
            self.touch(key)
        shard = Shard(
            id=name,
            file=f"{name}-{secrets.token_hex(8)}.safetensors",
            sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            rows=len(content_ids),
            dtype=key.dtype,
            shapes=tuple(tuple(shape) for shape in shapes),
            run=run,
        )
        storage.write_bytes(folder.data(shard.file), data)
        # an error here leaves the data alone: the entry may have been made all the same
        first = storage.create_exclusive(folder.entry(entry_name(name)), entry_json(shard, content_ids))
        if not first:
            storage.delete(folder.data(shard.file))
        return first

    def reader(self, key: ActivationKey, content_ids: Sequence[str]) -> ActivationReader:
        """Random access to the activations of these images; ActivationError when some are missing."""
        index = self.index(key)
        reader = ActivationReader(index, content_ids, partial(self._path, key), partial(self._open, key))
        self.touch(key)
        return reader

    # --- who uses what

    def lease(self, run_id: str, keys: Iterable[ActivationKey]) -> AbstractContextManager[None]:
        """Until the block ends, or this process does, nobody evicts these keys. StorageError when it cannot be had."""
        return lease.lease(run_id, [self._folder(key) for key in keys])

    def touch(self, key: ActivationKey) -> None:
        """Mark the key as used now."""
        storage.write_text(self._folder(key).used, used_now())

    def make_room(self, num_bytes: int, keep: Collection[str] = ()) -> bool:
        """Evict what was not used for longest until `num_bytes` more fit; False when leases, and the digests in `keep`,
        leave too little."""
        return eviction.make_room(self.uri, num_bytes, max_bytes=self._max_bytes, keep=keep)

    # --- inside

    def _folder(self, key: ActivationKey) -> ShardFolder:
        return ShardFolder(storage.join(self.uri, key.digest))

    def _read_entry(self, key: ActivationKey, uri: str) -> ShardEntry | None:
        data = read_or_none(uri)
        entry = parse_entry(name_of(uri), data, key) if data is not None else None
        if data is not None and entry is None:
            storage.delete(uri)
        return entry

    def _remove_entry(self, key: ActivationKey, shard: Shard) -> None:
        """Take a shard out of the index, but not one that was computed anew in the meantime."""
        uri = self._folder(key).entry(entry_name(shard.id))
        if shard.file.encode() in (read_or_none(uri) or b""):
            storage.delete(uri)

    def _remember(self, key: ActivationKey, versions: dict[str, str], index: ActivationIndex) -> None:
        """For the next who asks; only the indexes used last, so that many keys do not fill the memory."""
        with self._indexes_lock:
            self._indexes[key.digest] = versions, index
            self._indexes.move_to_end(key.digest)
            while len(self._indexes) > 1 and sum(len(one) for _, one in self._indexes.values()) > REMEMBERED_IMAGES:
                self._indexes.popitem(last=False)

    def _path(self, key: ActivationKey, shard: Shard) -> str:
        uri = self._folder(key).data(shard.file)
        return str(self._cache.path(uri)) if self._cache is not None else uri

    def _open(self, key: ActivationKey, shard: Shard) -> ShardMap:
        uri = self._folder(key).data(shard.file)
        try:
            with self._cache.open(uri, shard) if self._cache is not None else Path(uri).open("rb") as file:
                return map_shard(file, shard)
        except (FileNotFoundError, storage.NotFoundError):
            reason = "it is gone"
        except ShardMismatch as mismatch:
            reason = str(mismatch)
        except OSError as error:
            raise ActivationError(f"{uri}: {error.strerror or error}") from None
        self._remove_entry(key, shard)
        raise DamagedShardError(f"{uri} is damaged ({reason}); `tlray resume` computes it anew")


def _check(key: ActivationKey, content_ids: Sequence[str], values: Sequence[np.ndarray]) -> None:
    assert len(content_ids) == len(set(content_ids)) > 0, "a shard holds each of its images once"
    pack_ids(content_ids)
    for value in values:
        assert value.dtype.name == key.dtype, f"{value.dtype} values for a key of {key.dtype}"
        assert value.size, f"values of shape {value.shape}"
        assert len(value) == len(content_ids), f"{len(value)} rows for {len(content_ids)} images"
        step = max(1, CHECKED_AT_ONCE // (value.size // len(value)))  # the memory that the check takes is bounded
        if not all(np.isfinite(value[at : at + step]).all() for at in range(0, len(value), step)):
            raise not_finite(key)


def not_finite(key: ActivationKey) -> ActivationError:
    """Of activations that are not numbers as they are stored."""
    return ActivationError(f"{key.backbone} at {key.num_frozen} frozen blocks: {_remedy(key)}")


def _remedy(key: ActivationKey) -> str:
    if key.precision != "float32":
        return f"some activations computed in {key.precision} are not numbers; set activations.precision=float32"
    if key.dtype == "float16":
        return "some activations do not fit float16; set activations.dtype=float32"
    return "some activations are infinite or not a number; set activations.materialise=never, or leave the backbone out"
