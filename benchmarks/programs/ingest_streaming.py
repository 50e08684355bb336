"""MosaicML Streaming: MDS shards of the same bytes, written first where they are not there, and PyTorch's DataLoader.

python -m benchmarks.programs.ingest_streaming WORK.json      # settings: "folder", of the shards
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, PILToTensor, Resize

from benchmarks.programs.ingest_pass import BATCH, NUM_WORKERS, SIZE, Work, measure, read_work


class Photos(StreamingDataset):
    """Images of 224 px."""

    transform = Compose([Resize((SIZE, SIZE)), PILToTensor()])

    def __getitem__(self, at: int) -> torch.Tensor:
        return self.transform(super().__getitem__(at)["image"])


def main() -> None:
    work = read_work()
    folder = Path(work.settings["folder"])
    if not folder.exists():
        write_shards(work, folder)
    images = Photos(local=str(folder), batch_size=BATCH, shuffle=False)
    loader = DataLoader(images, BATCH, num_workers=NUM_WORKERS, persistent_workers=True)

    def one_pass() -> Iterator[np.ndarray]:
        for pixels in loader:
            yield pixels.numpy()

    measure(work, one_pass)


def write_shards(work: Work, folder: Path) -> None:
    with MDSWriter(out=str(folder), columns={"image": "jpeg", "label": "int"}) as writer:
        for path in work.paths:
            writer.write({"image": Image.open(path), "label": int(path.parent.name[-1:])})


if __name__ == "__main__":
    main()
