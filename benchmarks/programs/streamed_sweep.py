"""One trial with all blocks free, for one epoch: images are copied into shards, and streamed from there.

python -m benchmarks.programs.streamed_sweep IMAGES STORAGE
"""

import ctypes
import sys

from benchmarks.programs.small_sweep import BACKBONE, run_trials

DRIVER = "tlray-driver"  # how this process is told from Ray's own
PR_SET_NAME = 15
CACHE_MB = 4  # of decoded images: as many as this are there in the smallest run too


def main(images: str, storage: str) -> None:
    ctypes.CDLL(None).prctl(PR_SET_NAME, DRIVER.encode(), 0, 0, 0)
    run_trials(
        {
            "name": "memory",
            "storage": storage,
            "data": {
                "train": images,
                "prepare": "always",
                "cache": f"{storage}/cache",
                "memory_cache_mb": CACHE_MB,
                "num_threads": 1,
            },
            "backbones": [BACKBONE],
            "strategies": ["full"],
            "training": {"epochs": 1, "augmentation": "light", "batch_size": 64},
            "sweep": {"scheduler": "fifo"},
        }
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
