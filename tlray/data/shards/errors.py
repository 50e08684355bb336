"""What can go wrong with prepared shards.

DataError
└── ImageShardError           shards that cannot be kept or read on this node
    └── DamagedImageShardError    one that is no longer what was written, or is gone
"""

from tlray.errors import DataError


class ImageShardError(DataError):
    pass


class DamagedImageShardError(ImageShardError):
    """The shard has been taken out of the index: whoever prepares next writes its images anew."""
