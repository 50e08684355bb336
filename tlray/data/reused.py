"""Memory for batches that is used again once nobody holds the batch: fresh pages cost as much as what is copied there.

arrays = ReusedArrays()
batch = torch.from_numpy(arrays.take((32, 3, 224, 224)))
"""

import math
import weakref
from collections import deque

import numpy as np

KEPT = 2  # free blocks: the batch at work and the one behind it


class ReusedArrays:
    """Threads may share it."""

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque(maxlen=KEPT)

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of uint8 with any contents, for one owner: a tensor made of it, which other tensors may view.

        Its memory is given out again when the array itself is gone. Numpy's own views of it do not hold it.
        """
        size = math.prod(shape)
        try:
            block = self._free.popleft()
        except IndexError:
            block = np.empty(size, np.uint8)
        if len(block) < size:
            block = np.empty(size, np.uint8)
        array = block[:size].reshape(shape)
        weakref.finalize(array, self._free.append, block).atexit = False
        return array
