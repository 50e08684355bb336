"""Which images a store holds for one key, and in which rows of which shards.

    entry = parse_entry("4be1….json", storage.read_bytes(uri), key)
    index = ActivationIndex([entry, …])
    shards, rows = index.locate(content_ids)                # positions in index.entries, -1: not there

One entry, a small JSON file, makes one shard visible. In memory an image takes about 100 bytes.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from tlray.activations.errors import ActivationError
from tlray.activations.keys import ActivationKey

DIGEST_BYTES = 32  # of a content id, which is a sha256
ENTRY_NAME = re.compile(r"[0-9a-f]{32}\.json")
SHA256 = re.compile(r"[0-9a-f]{64}")
FILE_NAME = re.compile(r"[0-9a-f]{32}-[0-9a-f]{16}\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One data file: all that it takes to find it, check it and map it."""

    id: str  # hash of the sorted content ids
    file: str  # name in the key's folder `shards`
    sha256: str  # of the file, hexadecimal
    bytes: int  # of the file
    rows: int  # images
    dtype: str  # float16 or float32
    shapes: tuple[tuple[int, ...], ...]  # of each value of one image
    run: str  # that computed it


@dataclass(frozen=True, kw_only=True)
class ShardEntry(Shard):
    """A visible shard and its images, in the order of its rows."""

    digests: bytes = field(repr=False)  # the content ids, 32 bytes each

    @property
    def content_ids(self) -> tuple[str, ...]:
        """Hexadecimal sha256 of each image, by row."""
        text = self.digests.hex()
        step = 2 * DIGEST_BYTES
        return tuple(text[at : at + step] for at in range(0, len(text), step))

    def without_images(self) -> Shard:
        """For whoever keeps it for long: the rest is small."""
        return Shard(**{name: getattr(self, name) for name in Shard.__dataclass_fields__})


class ActivationIndex:
    """A snapshot of what is committed for one key. Where two shards hold the same image, the first by id counts."""

    def __init__(self, entries: Iterable[ShardEntry]) -> None:
        self.entries: tuple[ShardEntry, ...] = tuple(sorted(entries, key=lambda entry: entry.id))
        # numpy ignores zero bytes at the end of such strings, which changes nothing where all are 32 long
        digests = np.frombuffer(b"".join(entry.digests for entry in self.entries), f"S{DIGEST_BYTES}")
        order = np.argsort(digests, kind="stable").astype(np.int32)  # entries in order, so the first shard comes first
        digests = digests[order]
        first = np.ones(len(digests), bool)
        first[1:] = digests[1:] != digests[:-1]
        self._digests, order = digests[first], order[first]
        num_rows = [entry.rows for entry in self.entries]
        starts = np.cumsum([0, *num_rows], dtype=np.int32)[:-1]
        self._shards = np.repeat(np.arange(len(num_rows), dtype=np.int32), num_rows)[order]
        self._rows = order - starts[self._shards] if len(order) else order

    def __len__(self) -> int:
        """Images, each counted once."""
        return len(self._digests)

    def __contains__(self, content_id: str) -> bool:
        return bool(self.locate([content_id])[0][0] >= 0)

    def locate(self, content_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(positions in `entries` (N,), rows in that shard (N,)), int32; -1 for an image that is not there."""
        wanted = np.frombuffer(pack_ids(content_ids), f"S{DIGEST_BYTES}")
        if not len(self) or not len(wanted):
            return np.full(len(wanted), -1, np.int32), np.full(len(wanted), -1, np.int32)
        at = np.searchsorted(self._digests, wanted)
        at[at == len(self)] = 0
        found = self._digests[at] == wanted
        return np.where(found, self._shards[at], -1), np.where(found, self._rows[at], -1)


def pack_ids(content_ids: Sequence[str]) -> bytes:
    """Hexadecimal content ids as 32 bytes each; ActivationError for one that is no sha256."""
    try:
        packed = bytes.fromhex("".join(content_ids))
    except ValueError:
        packed = b""
    if len(packed) != DIGEST_BYTES * len(content_ids) or any(len(one) != 2 * DIGEST_BYTES for one in content_ids):
        wrong = next(one for one in content_ids if not SHA256.fullmatch(one))
        raise ActivationError(f"content id {wrong!r} is not a sha256 of 64 hexadecimal digits")
    return packed


def entry_name(shard_id: str) -> str:
    """Of the file that makes a shard visible."""
    return f"{shard_id}.json"


def shard_id(content_ids: Iterable[str]) -> str:
    """32 hexadecimal digits: the same for the same images in any order."""
    return hashlib.sha256("\n".join(sorted(content_ids)).encode()).hexdigest()[:32]


def entry_json(shard: Shard, content_ids: Sequence[str]) -> bytes:
    return json.dumps(asdict(shard) | {"content_ids": list(content_ids)}).encode()


def parse_entry(name: str, data: bytes, key: ActivationKey) -> ShardEntry | None:
    """The entry in the file `name`; None when it is not what `write_shard` writes for this key."""
    try:
        fields = json.loads(data)
        content_ids = fields.pop("content_ids")
        fields["shapes"] = tuple(tuple(map(int, shape)) for shape in fields["shapes"])
        entry = ShardEntry(**fields, digests=pack_ids(content_ids))
        sound = (
            entry_name(entry.id) == name
            and entry.id == shard_id(content_ids)
            and FILE_NAME.fullmatch(entry.file)  # never a path that leads elsewhere
            and SHA256.fullmatch(entry.sha256)
            and entry.dtype == key.dtype
            and entry.rows == len(content_ids) == len(set(content_ids)) > 0
            and entry.bytes > 0
            and all(extent > 0 for shape in entry.shapes for extent in shape)
        )
    except (ValueError, TypeError, KeyError, AttributeError, ActivationError):
        return None
    return entry if sound else None


def odd_ones(entries: Sequence[ShardEntry]) -> list[ShardEntry]:
    """Entries whose values have other shapes than most have; on a tie, other than the first by id."""
    if not entries:
        return []
    counts = Counter(entry.shapes for entry in sorted(entries, key=lambda entry: entry.id))
    usual, _ = counts.most_common(1)[0]
    return [entry for entry in entries if entry.shapes != usual]
