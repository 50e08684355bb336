"""Where images come from: folders, manifests in CSV or Parquet, Parquet with the images in it, WebDataset shards.

source = open_source("data.train", "s3://bucket/shards", config.data)
for entry in source.entries(): ...
data = read_image("s3://bucket/shards/0.tar#512+10240")
"""

from tlray import storage
from tlray.data.sources.detect import open_source
from tlray.data.sources.entry import Entry, Load, Source
from tlray.data.sources.listing import Listing, write_listing
from tlray.data.sources.members import IN_ZIP, MEMBER, ROW, member_of, row_of
from tlray.data.sources.parquet_images import read_row
from tlray.data.sources.tar import is_packed
from tlray.data.sources.webdataset import read_packed
from tlray.data.sources.zip_images import read_member

__all__ = ["Entry", "Listing", "Load", "Source", "open_source", "read_image", "write_listing"]


def read_image(uri: str, version: str = "", image_column: str = "image") -> bytes:
    """The bytes of one image by its URI, also of a member of a tar or Parquet file; StorageError where it is gone."""
    if ROW.fullmatch(uri):
        return read_row(*row_of(uri), image_column)
    if MEMBER.fullmatch(uri):
        container, offset, size = member_of(uri)
        if not is_packed(container):
            return storage.read_range(container, offset, size, version or None)
        return read_packed(container, offset, size, version)
    if IN_ZIP.fullmatch(uri):
        return read_member(uri, version)
    return storage.read_bytes(uri, version or None)
