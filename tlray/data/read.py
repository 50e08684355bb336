"""The bytes of an image of the manifest: from the prepared shards that hold them, else from where it was listed.

read = image_reader(config.data)
data = read(image)
"""

import hashlib
import json
from collections.abc import Callable

from tlray import storage
from tlray.config import DataConfig
from tlray.data.images import Image
from tlray.data.pixels import PIXELS_VERSION
from tlray.data.prepared import open_prepared
from tlray.data.sources import read_image
from tlray.errors import DataError

Read = Callable[[Image], bytes | memoryview]  # DataError for an image that is gone, or is not the one of the manifest


def image_reader(data: DataConfig) -> Read:
    """Threads may share it. A prepared shard is verified when it comes to this node, an original by its version."""
    shards = open_prepared(data)

    def read(image: Image) -> bytes | memoryview:
        if shards is None or not image.shard:
            return read_original(image, data.columns.image)
        return shards.read(image.shard, image.row)

    return read


def pixels_of(data: DataConfig) -> str:
    """JSON of what an image's pixels depend on beside its file: the code that decodes, and how far it was reduced."""
    return json.dumps({"version": PIXELS_VERSION, "max_side": data.max_side if data.prepare == "always" else None})


def read_original(image: Image, image_column: str = "image") -> bytes:
    """The image from where it was listed. One of another version is still good when its contents are the same."""
    try:
        try:
            content = read_image(image.uri, image.version, image_column)
            if image.version:
                return content
        except storage.ChangedError:
            content = read_image(image.uri, "", image_column)
    except storage.NotFoundError:
        raise DataError(
            f"{image.uri} is gone since the run's manifest was made: put it back or start a new run"
        ) from None
    if hashlib.sha256(content).hexdigest() != image.content_id:
        raise DataError(f"{image.uri} has changed since the run's manifest was made: start a new run")
    return content
