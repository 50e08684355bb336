"""The fixture `image_folder` in three folders, for tests that lean on how many images a split has."""

from collections.abc import Mapping
from pathlib import Path


def split_folders(images: Path, to: Path, *, val: int, test: int) -> Mapping[str, str]:
    """Links to the images -> data.train, data.val and data.test, with `val` and `test` of each class."""
    for label in sorted(path.name for path in images.iterdir()):
        for index, path in enumerate(sorted((images / label).iterdir())):
            split = "val" if index < val else "test" if index < val + test else "train"
            (to / split / label).mkdir(parents=True, exist_ok=True)
            (to / split / label / path.name).symlink_to(path)
    return {split: str(to / split) for split in ("train", "val", "test")}
