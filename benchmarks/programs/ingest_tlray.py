"""tlray's loader: batches of an epoch, shuffled, as a linear probe on images would have them.

    python -m benchmarks.programs.ingest_tlray WORK.json

Settings: "data" (a DataConfig, which says where images are read from), "manifest" (a saved one's folder),
"memory_cache_mb" and "kept_pixels" (a folder for decoded images, or null).
"""

from collections.abc import Iterator
from functools import partial
from itertools import count

import numpy as np

from benchmarks.programs.ingest_pass import BATCH, NUM_WORKERS, SIZE, measure, read_work
from tlray.catalogue import Preprocessing
from tlray.config import DataConfig
from tlray.data.batch import Streams
from tlray.data.kept import KeptPixels
from tlray.data.loader import make_streams
from tlray.data.read import image_reader
from tlray.runs.manifest import load_manifest

PREPROCESSING = Preprocessing(
    input_size=(SIZE, SIZE), resize=SIZE, crop_mode="squash", interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3
)
KEPT_BYTES = 10**10


def main() -> None:
    work = read_work()
    kept = work.settings["kept_pixels"]
    streams = make_streams(
        load_manifest(work.settings["manifest"]),
        PREPROCESSING,
        batch_size=BATCH,
        augmentation="none",
        seed=0,
        num_threads=NUM_WORKERS,
        memory_cache_mb=work.settings["memory_cache_mb"],
        read=image_reader(DataConfig(**work.settings["data"])),
        kept_pixels=None if kept is None else KeptPixels(kept, KEPT_BYTES),
    )
    epochs = count()
    measure(work, partial(one_epoch, streams, epochs))


def one_epoch(streams: Streams, epochs: Iterator[int]) -> Iterator[np.ndarray]:
    for batch in streams.train(next(epochs)):
        yield batch.inputs[0].numpy()


if __name__ == "__main__":
    main()
