"""Prepared shards: the encoded images of many small files in a few large ones, on durable storage and on each node.

    store = ImageShards("s3://bucket/shards/9f3c…", "~/.cache/tlray/images", cache_max_bytes=50 * 10**9)
    with store.writer() as writer:
        writer.add(inspected, data)
    index = store.index()                                   # pa.Table, a row for each image
    data = store.read(shard, row)                           # memoryview of the encoded image, not a copy

A shard is an Arrow IPC file of about 32 MB named after its checksum; its entry in the index, a Parquet file with the
same columns but the images, is written last and makes it visible. What a killed writer leaves is named by no entry.
"""

from tlray.data.shards.errors import DamagedImageShardError, ImageShardError
from tlray.data.shards.row import ImageRow
from tlray.data.shards.store import ImageShards, collection_uri
from tlray.data.shards.writer import ShardWriter

__all__ = [
    "DamagedImageShardError",
    "ImageRow",
    "ImageShardError",
    "ImageShards",
    "ShardWriter",
    "collection_uri",
]
