"""The demo's images: reproducible, balanced, and two tasks that share nothing but their kind."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from tlray.config import DataConfig
from tlray.data.manifest import make_manifest
from tlray.data.synthetic import SHAPES, SIZE, Task, make_dataset


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.jpg"))
    }


def made(folder: Path, task: Task = "target", seed: int = 0, **images_per_class: int) -> dict[str, str]:
    make_dataset(str(folder), task=task, images_per_class=images_per_class, seed=seed)
    return digests(folder)


def test_every_class_has_the_stated_number_of_images_in_every_split(tmp_path: Path) -> None:
    names = made(tmp_path, train=3, val=2)
    assert len(SHAPES["target"]) == 6
    assert set(names) == {
        f"{split}/{label}/{number:04}.jpg"
        for split, count in (("train", 3), ("val", 2))
        for label in SHAPES["target"]
        for number in range(count)
    }


def test_images_are_small_rgb_jpegs_that_all_differ(tmp_path: Path) -> None:
    names = made(tmp_path, train=3)
    assert len(set(names.values())) == len(names)
    for name in names:
        with Image.open(tmp_path / name) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (SIZE, SIZE))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first = made(tmp_path / "1", train=2)
    assert made(tmp_path / "2", train=2) == first
    assert not set(made(tmp_path / "3", seed=1, train=2).values()) & set(first.values())


def test_an_image_does_not_depend_on_what_else_is_made(tmp_path: Path) -> None:
    assert made(tmp_path / "few", train=1).items() <= made(tmp_path / "many", test=1, train=2).items()


def test_the_tasks_have_no_class_and_no_background_in_common(tmp_path: Path) -> None:
    assert not SHAPES["source"].keys() & SHAPES["target"].keys()
    corners: dict[Task, list[np.ndarray]] = {"source": [], "target": []}
    for task, pixels in corners.items():
        for name in made(tmp_path / task, task, train=4):
            pixels.append(np.asarray(Image.open(tmp_path / task / name), dtype=float)[:6, :6].ravel())
    distances = np.linalg.norm(np.array(corners["source"])[:, None] - np.array(corners["target"])[None], axis=2)
    own = np.linalg.norm(np.array(corners["target"])[:, None] - np.array(corners["target"])[None], axis=2)
    assert distances.min() > 0.5 * own[own > 0].min()


def test_a_manifest_can_be_made_of_it(tmp_path: Path) -> None:
    made(tmp_path, train=2, val=1, test=1)
    data = DataConfig(**{split: str(tmp_path / split) for split in ("train", "val", "test")})
    manifest = make_manifest(data)
    assert manifest.classes == tuple(sorted(SHAPES["target"]))
    assert [len(manifest.split(split)) for split in ("train", "val", "test")] == [12, 6, 6]
    assert manifest.bad == ()
    assert manifest.num_leaked == 0
