"""Where the parts of one key lie in a store, and how many files are handled at once.

    folder = KeyFolder(storage.join(store_uri, key.digest))
    folder.entry("4be1…")                                   # …/index/4be1….json

<digest>/spec.json                  what the key is, for people
<digest>/used.json                  when it was last used
<digest>/index/<shard id>.json      written last: makes a shard visible
<digest>/shards/<shard id>-<random>.safetensors
<digest>/leases/<run>.<random>.json
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from tlray import storage

REQUESTS_AT_ONCE = 16  # to a remote store

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class KeyFolder:
    """The folder of one key."""

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

    def entry(self, shard_id: str) -> str:
        return storage.join(self.index, f"{shard_id}.json")

    def data(self, file: str) -> str:
        return storage.join(self.shards, file)


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
