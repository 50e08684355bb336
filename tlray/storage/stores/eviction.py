"""What a store takes up, and making room in it: whole collections, those used last the last, none with a live lease.

    usage(store_uri)["9f3c…"].num_bytes
    make_room(store_uri, 10**9, max_bytes=50 * 10**9, keep={"9f3c…"})

Removing a collection while somebody is about to read it loses work but breaks nothing: the index goes first, then the
leases are looked at once more. Whoever took a lease before that keeps the data that it saw; whoever takes one later
finds nothing in the index.
"""

import re
import time
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from tlray import storage
from tlray.storage.stores.folder import DIGEST_LENGTH, ShardFolder, for_each, list_or_none, name_of, read_or_none
from tlray.storage.stores.lease import holders

ORPHAN_SECONDS = 24 * 3600.0  # a data object that no index names is left alone that long: its writer may be at work


@dataclass(frozen=True)
class Usage:
    """What one collection takes up."""

    bytes: int
    last_used: float  # seconds since 1970
    leased_by: tuple[str, ...]  # runs


def files_by_digest(store_uri: str) -> dict[str, list[storage.FileInfo]]:
    """Every file of the store below the digest of its collection; what else lies there is no concern of ours."""
    found = defaultdict(list)
    for file in list_or_none(store_uri):
        digest, slash, _ = file.uri.removeprefix(f"{store_uri.rstrip('/')}/").partition("/")
        if slash and re.fullmatch(rf"[0-9a-f]{{{DIGEST_LENGTH}}}", digest):
            found[digest].append(file)
    return dict(found)


def usage(store_uri: str) -> dict[str, Usage]:
    """By digest, from a listing and the small files that say when a collection was used and by whom."""
    files = files_by_digest(store_uri)

    def of_one(digest: str) -> Usage:
        folder = ShardFolder(storage.join(store_uri, digest))
        return Usage(_total(files[digest]), _last_used(folder, files[digest]), holders(folder))

    return dict(zip(files, for_each(of_one, files, remote=storage.is_remote(store_uri)), strict=True))


def make_room(store_uri: str, num_bytes: int, *, max_bytes: int | None, keep: Collection[str]) -> bool:
    """Evict until `num_bytes` more fit `max_bytes`; False when too much of it is leased or in `keep` (digests).

    What killed writers left behind goes first.
    """
    files = files_by_digest(store_uri)
    total = sum(map(_total, files.values()))
    for digest in files:
        total -= _sweep(ShardFolder(storage.join(store_uri, digest)), files[digest])
    if max_bytes is None or total + num_bytes <= max_bytes:
        return True
    found = usage(store_uri)
    for digest in sorted(found, key=lambda digest: found[digest].last_used):
        if total + num_bytes <= max_bytes:
            break
        if digest not in keep and not found[digest].leased_by and _evict(ShardFolder(storage.join(store_uri, digest))):
            total -= found[digest].bytes
    return total + num_bytes <= max_bytes


def _evict(folder: ShardFolder) -> bool:
    """Remove a collection; False when somebody took a lease on it just now."""
    remote = storage.is_remote(folder.uri)
    if holders(folder):
        return False
    files = [file.uri for file in list_or_none(folder.uri)]  # what is written from now on is not touched
    index = [uri for uri in files if uri.startswith(f"{folder.index}/")]
    shards = [uri for uri in files if uri.startswith(f"{folder.shards}/")]
    for_each(storage.delete, index, remote=remote)
    if holders(folder):
        return False
    for_each(storage.delete, shards, remote=remote)
    for_each(storage.delete, sorted({*files} - {*index, *shards}), remote=remote)
    return True


def _sweep(folder: ShardFolder, files: list[storage.FileInfo]) -> int:
    """Remove old data objects that no entry names, and old temporary files; returns their bytes.

    Not while it is leased: a run may still read what has been taken out of the index.
    """
    orphans = [file for file in _unnamed(folder, files) if time.time() - file.modified > ORPHAN_SECONDS]
    if not orphans or holders(folder):
        return 0
    for_each(storage.delete, [file.uri for file in orphans], remote=storage.is_remote(folder.uri))
    return _total(orphans)


def _unnamed(folder: ShardFolder, files: list[storage.FileInfo]) -> list[storage.FileInfo]:
    entries = {_shard_id(file.uri): file.uri for file in files if file.uri.startswith(f"{folder.index}/")}
    shards = [file for file in files if file.uri.startswith(f"{folder.shards}/")]
    by_id = defaultdict(list)
    for file in shards:
        by_id[_shard_id(file.uri)].append(file)
    unnamed = [file for file in files if name_of(file.uri).startswith(".") and file not in shards]
    for shard_id, alike in by_id.items():
        if shard_id not in entries:
            unnamed += alike
        elif len(alike) > 1:  # one of them is the shard
            data = read_or_none(entries[shard_id]) or b""
            unnamed += [file for file in alike if name_of(file.uri).encode() not in data]
    return unnamed


def _shard_id(uri: str) -> str:
    """The part that the names of a shard's entry and of its data have in common."""
    return re.split("[-.]", name_of(uri), maxsplit=1)[0]


def _last_used(folder: ShardFolder, files: list[storage.FileInfo]) -> float:
    """What used.json says; without one, when the newest file was written."""
    try:
        return float(storage.parse_json(read_or_none(folder.used) or b"null")["used"])
    except (ValueError, TypeError, KeyError):
        return max(file.modified for file in files)


def _total(files: list[storage.FileInfo]) -> int:
    return sum(file.size for file in files)
