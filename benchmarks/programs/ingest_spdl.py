"""SPDL: batches of files, decoded and resized by FFmpeg in two threads. Its pixels are not those of Pillow.

python -m benchmarks.programs.ingest_spdl WORK.json
"""

from collections.abc import Iterator

import numpy as np
import spdl.io
from spdl.pipeline import PipelineBuilder

from benchmarks.programs.ingest_pass import BATCH, NUM_WORKERS, SIZE, measure, read_work


def load(paths: list[str]) -> np.ndarray:
    scale = spdl.io.get_video_filter_desc(
        scale_width=SIZE, scale_height=SIZE, scale_algo="bilinear", scale_mode=None, pix_fmt="rgb24"
    )
    return spdl.io.to_numpy(spdl.io.load_image_batch(paths, width=None, height=None, filter_desc=scale))


def main() -> None:
    work = read_work()
    paths = list(map(str, work.paths))

    def one_pass() -> Iterator[np.ndarray]:
        pipeline = (
            PipelineBuilder()
            .add_source(paths)
            .aggregate(BATCH)
            .pipe(load, concurrency=NUM_WORKERS)
            .add_sink(NUM_WORKERS)
            .build(num_threads=NUM_WORKERS)
        )
        with pipeline.auto_stop():
            yield from pipeline

    measure(work, one_pass)


if __name__ == "__main__":
    main()
