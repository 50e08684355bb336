"""A data set's images as prepared shards: when that is worth it, where they lie, and how a manifest comes by them.

data = with_preparation(config.data)                # "auto" decided
manifest = prepare_manifest(data)                   # reads, and keeps, each image that no shard holds yet
shards = open_prepared(data)                        # None where images are read from where they lie
"""

from functools import lru_cache

from tlray import storage
from tlray.config import DataConfig
from tlray.data.manifest import Manifest, make_manifest
from tlray.data.shards import ImageShards, collection_uri
from tlray.data.sources import open_source
from tlray.errors import DataError
from tlray.storage.stores.eviction import make_room
from tlray.storage.stores.folder import name_of

GB = 10**9


def with_preparation(data: DataConfig) -> DataConfig:
    """`data.prepare` decided where it is "auto": images on a server, and in containers read as a whole, are prepared.

    Of a Parquet, zip or .tar.gz file a single image costs far more than its bytes. Local files are read as they are.
    """
    if data.prepare != "auto":
        return data
    locations = {"data.train": data.train, "data.val": data.val, "data.test": data.test}
    wanted = any(
        storage.is_remote(uri) or not open_source(field, uri, data).in_any_order
        for field, uri in locations.items()
        if uri is not None
    )
    return data.model_copy(update={"prepare": "always" if wanted else "never"})


def open_prepared(data: DataConfig) -> ImageShards | None:
    """The store of the data set's prepared shards, one for each process; None unless `data.prepare` is "always"."""
    if data.prepare != "always":
        return None
    assert data.prepared is not None, "made absolute with the other locations"
    spec = {
        "locations": [data.train, data.val, data.test],
        "format": data.format,
        "columns": data.columns.model_dump(),
        "max_side": data.max_side,
    }
    return _open(collection_uri(data.prepared, spec), data.cache, _bytes(data.cache_max_gb))


def prepare_manifest(data: DataConfig) -> Manifest:
    """`make_manifest`, with every image that it reads kept in the shards, and those that lie there not read again."""
    shards = open_prepared(data)
    if shards is None:
        return make_manifest(data)
    known = shards.index()
    if known.num_rows:  # a data set that is refused leaves nothing behind
        shards.touch()
    with shards.writer(max_side=data.max_side) as writer:
        manifest = make_manifest(data, known=known, keep=writer.add)
    shards.touch()
    limit_size(data)
    return manifest.with_shards(shards.index())


def limit_size(data: DataConfig) -> None:
    """Remove the data sets not used for longest where all together exceed `data.prepared_max_gb`."""
    shards = open_prepared(data)
    if shards is None or data.prepared_max_gb is None or data.prepared is None:
        return
    if not make_room(data.prepared, 0, max_bytes=_bytes(data.prepared_max_gb), keep={name_of(shards.uri)}):
        raise DataError(
            f"data.prepared_max_gb {data.prepared_max_gb:g}: {data.prepared} has no room for these images, and other "
            "runs are using the rest; raise it, bound the images with data.max_side, or set data.prepare=never"
        )


@lru_cache(maxsize=4)
def _open(uri: str, cache: str, max_bytes: int | None) -> ImageShards:
    return ImageShards(uri, cache, max_bytes)


def _bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else int(gigabytes * GB)
