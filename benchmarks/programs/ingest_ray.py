"""Ray Data: `read_images` that resizes, every pass anew; or its result kept by `materialize`, and read from there.

python -m benchmarks.programs.ingest_ray WORK.json      # settings: "materialize", true or false
"""

from collections.abc import Iterator

import numpy as np
import ray

from benchmarks.programs.ingest_pass import BATCH, NUM_WORKERS, SIZE, measure, read_work

OBJECT_STORE_BYTES = 500 * 10**6


def main() -> None:
    work = read_work()
    ray.init(
        num_cpus=NUM_WORKERS, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, logging_level="ERROR"
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    images = ray.data.read_images(work.images, size=(SIZE, SIZE), mode="RGB")
    if work.settings["materialize"]:
        images = images.materialize()

    def one_pass() -> Iterator[np.ndarray]:
        for batch in images.iter_batches(batch_size=BATCH, batch_format="numpy"):
            yield batch["image"]

    measure(work, one_pass)
    ray.shutdown()


if __name__ == "__main__":
    main()
