"""A store of prepared shards: write, list, read. See the package for what it looks like."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

import pyarrow as pa

from tlray import storage
from tlray.data.shards.errors import DamagedImageShardError, ImageShardError
from tlray.data.shards.index import ShardIndex
from tlray.data.shards.shard import DATA_SUFFIX, ENTRY_SUFFIX, MappedShard, ShardName, map_shard
from tlray.data.shards.writer import SHARD_BYTES, ShardWriter
from tlray.storage.stores import lease
from tlray.storage.stores.checksums import is_sound
from tlray.storage.stores.folder import DIGEST_LENGTH, ShardFolder, used_now
from tlray.storage.stores.maps import OpenMaps
from tlray.storage.stores.node_files import NodeFiles, Purpose, UnsoundFile

MAX_OPEN_MAPS = 256  # of a store in one process; each costs a file descriptor, of which there may be 1024
PROCESSES_OF_A_NODE = 8  # that may have so many shards open that nothing else fits the cache


def collection_uri(root: str, spec: Mapping[str, Any]) -> str:
    """Where below `root` the shards of what `spec` says lie: a data set, and how its images are kept. Any JSON.

    `tlray.storage.stores.eviction.make_room(root, ...)` limits the size of all such stores together.
    """
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return storage.join(root, hashlib.sha256(canonical.encode()).hexdigest()[:DIGEST_LENGTH])


class ImageShards:
    """A folder or an s3:// prefix of shards; threads, processes and machines may share it."""

    def __init__(self, uri: str, cache_folder: str, cache_max_bytes: int | None = None) -> None:
        """cache_folder: for copies of a remote store's shards; those of a local store are mapped where they lie."""
        self.uri = storage.absolute(uri)
        self._cache = cache_folder, cache_max_bytes
        self._folder = ShardFolder(self.uri)
        self._index = ShardIndex(self._folder)
        self._maps: OpenMaps[MappedShard] = OpenMaps(_max_maps(cache_max_bytes))
        self._notes = Path(cache_folder).expanduser() / ".sound"
        purpose = Purpose(
            contents="the prepared shards",
            suffix=DATA_SUFFIX,
            folder_setting="data.cache",
            limit_setting="data.cache_max_gb",
            error=ImageShardError,
            let_go=self._maps.drop,
        )
        self._copies = NodeFiles(cache_folder, cache_max_bytes, purpose) if storage.is_remote(self.uri) else None

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageShards, (self.uri, *self._cache)

    def index(self) -> pa.Table:
        """A snapshot of what is visible: uri, version, content_id, num_bytes, width, height, status, shard, row."""
        return self._index.load()

    def writer(
        self, *, max_side: int | None = None, shard_bytes: int = SHARD_BYTES, num_threads: int = 2
    ) -> ShardWriter:
        """max_side: images whose short side is longer are kept as JPEGs of that short side, in pixels.

        num_threads: that make images smaller.
        """
        return ShardWriter(self._folder, max_side=max_side, shard_bytes=shard_bytes, num_threads=num_threads)

    def read(self, shard: str, row: int) -> memoryview:
        """The encoded image, read-only, in the memory of the map: what holds on to it keeps the shard's file open.

        A remote store's shard is fetched once for each node. DamagedImageShardError when it is not what was written.
        """
        image = self._map(shard).image(row)
        self._maps.touch(shard, 1, len(image))
        return image

    def fetch(self, shard: str) -> None:
        """Have the shard on this node, verified and open: what `read` does first where nobody did it before."""
        self._map(shard)

    def close(self) -> None:
        """Let go of the open shards, so that they may be evicted from this node; reading opens them again."""
        self._maps.drop()

    def lease(self, run_id: str) -> AbstractContextManager[None]:
        """Until the block ends, or this process does, nobody evicts the store. StorageError when it cannot be had."""
        return lease.lease(run_id, [self._folder])

    def touch(self) -> None:
        """Mark the store as used now."""
        storage.write_text(self._folder.used, used_now())

    def _map(self, shard: str) -> MappedShard:
        return self._maps.get(shard, lambda: self._open(shard))

    def _open(self, shard: str) -> MappedShard:
        name = ShardName.parse(shard)
        uri = self._folder.data(f"{name}{DATA_SUFFIX}")
        try:
            with self._open_file(uri, name) as file:
                if not self._is_sound(file, name):
                    raise UnsoundFile("its checksum differs")
                return map_shard(file)
        except (FileNotFoundError, storage.NotFoundError):
            reason = "it is gone"
        except UnsoundFile as error:
            reason = str(error)
        except OSError as error:
            raise ImageShardError(f"{uri}: {error.strerror or error}") from None
        storage.delete(self._folder.entry(f"{name}{ENTRY_SUFFIX}"))
        raise DamagedImageShardError(f"{uri} is damaged ({reason}); a new run prepares its images anew")

    def _open_file(self, uri: str, name: ShardName) -> BufferedReader:
        """The file itself, or the copy of it that this node has from now on."""
        if self._copies is None:
            return Path(uri).open("rb")
        copy = f"{name.sha256[:2]}/{name}{DATA_SUFFIX}"
        sound = partial(self._is_sound, name=name)
        return self._copies.open(copy, name.num_bytes, sound, lambda path: storage.download(uri, path))

    def _is_sound(self, file: BufferedReader, name: ShardName) -> bool:
        return is_sound(file, name.num_bytes, name.sha256, self._notes)


def _max_maps(cache_max_bytes: int | None) -> int:
    """How many shards a process keeps open: an open one cannot be evicted, and others want room too."""
    if cache_max_bytes is None:
        return MAX_OPEN_MAPS
    return max(1, min(MAX_OPEN_MAPS, cache_max_bytes // (PROCESSES_OF_A_NODE * SHARD_BYTES)))
