"""WebDataset: tar shards, written first where they are not there, and PyTorch's DataLoader.

python -m benchmarks.programs.ingest_webdataset WORK.json      # settings: "folder", of the shards
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import webdataset
from torchvision.transforms import Compose, PILToTensor, Resize

from benchmarks.programs.ingest_pass import BATCH, NUM_WORKERS, SIZE, Work, measure, read_work

NUM_SHARDS = 4  # two for each worker


def main() -> None:
    work = read_work()
    folder = Path(work.settings["folder"])
    if not folder.exists():
        write_shards(work, folder)
    shards = sorted(map(str, folder.glob("*.tar")))
    images = (
        webdataset.WebDataset(shards, shardshuffle=False)
        .decode("pilrgb")
        .to_tuple("jpg", "cls")
        .map_tuple(Compose([Resize((SIZE, SIZE)), PILToTensor()]), int)
        .batched(BATCH)
    )
    loader = webdataset.WebLoader(images, batch_size=None, num_workers=NUM_WORKERS, persistent_workers=True)

    def one_pass() -> Iterator[np.ndarray]:
        for pixels, _ in loader:
            yield np.asarray(pixels)

    measure(work, one_pass)


def write_shards(work: Work, folder: Path) -> None:
    folder.mkdir(parents=True)
    for shard in range(NUM_SHARDS):
        with webdataset.TarWriter(str(folder / f"{shard}.tar")) as writer:
            for path in work.paths[shard::NUM_SHARDS]:
                writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": path.parent.name[-1:].encode()})


if __name__ == "__main__":
    main()
