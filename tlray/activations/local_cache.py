"""Copies of a remote store's shards on a node's disk: downloaded once, however many processes ask at the same time.

cache = LocalCache("~/.cache/tlray/activations", max_bytes=50 * 10**9)
with cache.open("s3://bucket/activations/ab…/shards/4be1….safetensors", shard) as file:
    …                                                  # a verified file that nobody evicts while it is open
"""

from functools import partial
from io import BufferedReader
from pathlib import Path

from tlray import storage
from tlray.activations.errors import ActivationError
from tlray.activations.index import Shard
from tlray.activations.shard import MAPS, ShardMismatch
from tlray.storage.stores.checksums import is_sound
from tlray.storage.stores.node_files import NodeFiles, Purpose, UnsoundFile

COPIES = Purpose(
    contents="the copies",
    suffix=".safetensors",
    folder_setting="activations.cache",
    limit_setting="activations.cache_max_gb",
    error=ActivationError,
    let_go=MAPS.drop,
)


class LocalCache:
    """A folder of copies, shared by all processes of a node and by all stores."""

    def __init__(self, folder: str, max_bytes: int | None) -> None:
        self._files = NodeFiles(folder, max_bytes, COPIES)

    def path(self, uri: str) -> Path:
        """Where the copy of `…/<digest>/shards/<file>` lies, once it is there."""
        return self._files.path(_name(uri))

    def open(self, uri: str, shard: Shard) -> BufferedReader:
        """The sound copy, locked against eviction for as long as it, or a map of it, is open.

        ShardMismatch when what the store holds is damaged itself, NotFoundError when it holds nothing.
        """
        sound = partial(is_sound, size=shard.bytes, sha256=shard.sha256)
        try:
            return self._files.open(_name(uri), shard.bytes, sound, lambda path: storage.download(uri, path))
        except UnsoundFile as error:
            raise ShardMismatch(str(error)) from None


def _name(uri: str) -> str:
    digest, _, name = uri.split("/")[-3:]
    return f"{digest}/{name}"
