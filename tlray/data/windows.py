"""When an epoch goes through a data set a few shards at a time: where a node cannot hold all of them.

windows = windows_of(manifest.split("train"), config.data)        # None: the whole split is shuffled at once
"""

import numpy as np
import pyarrow.compute as pc

from tlray.config import DataConfig
from tlray.data.images import Images
from tlray.data.order import Windows

GB = 10**9
WINDOWS_HELD = 2  # the one that is read, and the next one on its way


def windows_of(images: Images, data: DataConfig) -> Windows | None:
    """Windows for images whose prepared shards exceed `data.cache_max_gb`; a function of the manifest alone.

    Without them a random order would fetch nearly every image's shard anew once the copies do not fit.
    """
    if data.prepare != "always" or data.cache_max_gb is None or not len(images):
        return None
    sizes = images.table["num_bytes"].to_numpy()
    room = data.cache_max_gb * GB
    if sizes.sum() <= room:
        return None
    column = images.table["shard"].combine_chunks()
    names = pc.unique(column).sort()
    shard_of = pc.index_in(column, value_set=names).to_numpy()
    mean_bytes = sizes.sum() / len(names)
    return Windows(np.asarray(shard_of), max(1, int(room / WINDOWS_HELD / mean_bytes)))
