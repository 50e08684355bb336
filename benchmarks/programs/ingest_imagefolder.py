"""torchvision's ImageFolder and PyTorch's DataLoader, with the loader of files that they come with (Pillow).

python -m benchmarks.programs.ingest_imagefolder WORK.json
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, PILToTensor, Resize

from benchmarks.programs.ingest_pass import BATCH, NUM_WORKERS, SIZE, measure, read_work


def main() -> None:
    work = read_work()
    images = ImageFolder(work.images, Compose([Resize((SIZE, SIZE)), PILToTensor()]))
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=NUM_WORKERS, persistent_workers=True)

    def one_pass() -> Iterator[np.ndarray]:
        for pixels, _ in loader:
            yield pixels.numpy()

    measure(work, one_pass)


if __name__ == "__main__":
    main()
