"""Where the parts of one collection of shards lie in a store, and how many files are handled at once.

    folder = ShardFolder(storage.join(store_uri, digest))
    folder.entry("4be1….json")                              # …/index/4be1….json

<digest>/spec.json                  what the collection is, for people
<digest>/used.json                  when it was last used
<digest>/index/<shard id>….…        written last: makes a shard visible
<digest>/shards/<shard id>-….…
<digest>/leases/<run>.<random>.json

What the files of index and shards are called beyond the shard's id, and what is in them, is the store's own business.
"""

import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from tlray import storage

REQUESTS_AT_ONCE = 16  # to a remote store
DIGEST_LENGTH = 32  # hexadecimal digits: what the folder of a collection is called

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ShardFolder:
    """The folder of one collection."""

    uri: str

    @property
    def spec(self) -> str:
        return storage.join(self.uri, "spec.json")

    @property
    def used(self) -> str:
        return storage.join(self.uri, "used.json")

    @property
    def index(self) -> str:
        return storage.join(self.uri, "index")

    @property
    def shards(self) -> str:
        return storage.join(self.uri, "shards")

    @property
    def leases(self) -> str:
        return storage.join(self.uri, "leases")

    def entry(self, file: str) -> str:
        return storage.join(self.index, file)

    def data(self, file: str) -> str:
        return storage.join(self.shards, file)


def used_now() -> str:
    """What `used.json` holds once it is written."""
    return json.dumps({"used": time.time()})


def name_of(uri: str) -> str:
    return uri.rpartition("/")[2]


def list_or_none(uri: str) -> list[storage.FileInfo]:
    """All files below a folder; none where there is no folder."""
    try:
        return list(storage.list_files(uri))
    except storage.NotFoundError:
        return []


def read_or_none(uri: str) -> bytes | None:
    """A file that somebody may just have removed."""
    try:
        return storage.read_bytes(uri)
    except storage.NotFoundError:
        return None


def for_each(function: Callable[[Item], Result], items: Iterable[Item], *, remote: bool) -> list[Result]:
    """function(item) of each, in order; many at once where each waits for a server."""
    items = list(items)
    if not remote or len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(REQUESTS_AT_ONCE, len(items)), thread_name_prefix="tlray-store") as pool:
        return list(pool.map(function, items))
