"""Decoded pixels on a node's disk: written once, whole, and what the evaluation transform gives."""

import hashlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from activation_samples import image_ids, run_python, start_python

from tlray.catalogue import Preprocessing
from tlray.data import pixels as pixels_module
from tlray.data.decode import decode
from tlray.data.pixels import PixelStore
from tlray.data.transforms import eval_transform
from tlray.errors import DataError

PREPROCESSING = Preprocessing(
    input_size=(24, 32),
    resize=40,
    crop_mode="center",
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
)
IDS = image_ids(20)
IMAGE_BYTES = 3 * 24 * 32
HEADER_BYTES = 128

# Draws two images, says so, and goes no further.
STUCK = """
import sys, time
import torch
from activation_samples import image_ids
from tlray.catalogue import Preprocessing
from tlray.data.pixels import PixelStore
def draw(rows):
    for number, row in enumerate(rows):
        if number == 2:
            print("half", flush=True)
            time.sleep(600)
        yield torch.zeros(3, 24, 32, dtype=torch.uint8)
preprocessing = Preprocessing(input_size=(24, 32), resize=40, crop_mode="center", interpolation="bilinear",
                              mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
PixelStore.open(sys.argv[1], image_ids(20), preprocessing, draw)
"""

# Opens the store when told to begin; prints how many images it had to draw.
OPENER = """
import sys
import torch
from activation_samples import image_ids
from tlray.catalogue import Preprocessing
from tlray.data.pixels import PixelStore
drawn = []
def draw(rows):
    for row in rows:
        drawn.append(row)
        yield torch.full((3, 24, 32), row, dtype=torch.uint8)
preprocessing = Preprocessing(input_size=(24, 32), resize=40, crop_mode="center", interpolation="bilinear",
                              mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
print("ready", flush=True)
sys.stdin.readline()
ids = image_ids(20)
store = PixelStore.open(sys.argv[1], ids, preprocessing, draw)
assert store.gather(store.rows_of(ids))[:, 0, 0, 0].tolist() == list(range(20))
print(len(drawn))
"""


def image_of(content_id: str) -> torch.Tensor:
    random = np.random.default_rng(int(content_id[:8], 16))
    return torch.from_numpy(random.integers(0, 256, (3, 24, 32), dtype=np.uint8))


class Draw:
    """Draws made-up images and remembers which."""

    def __init__(self, content_ids: Sequence[str]) -> None:
        self.content_ids = content_ids
        self.drawn: list[str] = []

    def __call__(self, rows: Sequence[int]) -> Iterator[torch.Tensor]:
        for row in rows:
            self.drawn.append(self.content_ids[row])
            yield image_of(self.content_ids[row])


def open_store(folder: Path, ids: Sequence[str] = IDS, max_bytes: int | None = None) -> PixelStore:
    return PixelStore.open(str(folder), ids, PREPROCESSING, Draw(ids), max_bytes)


def files(folder: Path) -> list[Path]:
    return sorted((folder / "pixels").iterdir())


def test_pixels_are_those_of_the_evaluation_transform(tmp_path: Path, image_folder: Path) -> None:
    paths = sorted(image_folder.rglob("*.jpg"))
    ids = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]

    def draw(rows: Sequence[int]) -> Iterator[torch.Tensor]:
        for row in rows:
            image = torch.from_numpy(decode(paths[row].read_bytes())).permute(2, 0, 1)
            yield eval_transform(image, PREPROCESSING)

    with PixelStore.open(str(tmp_path), ids, PREPROCESSING, draw) as store:
        gathered = store.gather(store.rows_of(ids))
    assert torch.equal(gathered, torch.stack(list(draw(range(len(ids))))))


def test_rows_come_in_the_order_asked_and_may_repeat(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for some in (IDS, IDS[::-1], [IDS[3]] * 4, []):
            gathered = store.gather(store.rows_of(some))
            assert gathered.shape == (len(some), 3, 24, 32)
            assert gathered.dtype == torch.uint8
            assert all(torch.equal(image, image_of(one)) for image, one in zip(gathered, some, strict=True))


def test_what_is_gathered_is_a_copy_and_what_is_mapped_is_not(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        rows = store.rows_of(IDS)
        store.gather(rows).zero_()
        images = store.images
        (line,) = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    start, end = (int(one, 16) for one in line.split()[0].split("-"))
    assert start <= images.data_ptr() < images.data_ptr() + images.nbytes <= end
    for row, content_id in zip(rows.tolist(), IDS, strict=True):
        assert torch.equal(images[row], image_of(content_id))


def test_writing_to_the_map_does_not_reach_the_file(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.images.zero_()
        assert torch.equal(store.gather(store.rows_of(IDS[:1]))[0], image_of(IDS[0]))


def test_an_image_that_occurs_often_is_drawn_and_kept_once(tmp_path: Path) -> None:
    ids = [*IDS, *IDS[::-1]]
    draw = Draw(ids)
    with PixelStore.open(str(tmp_path), ids, PREPROCESSING, draw) as store:
        assert len(store) == 20
        assert sorted(draw.drawn) == sorted(IDS)
        assert torch.equal(store.gather(store.rows_of(ids[20:21]))[0], image_of(IDS[-1]))


def test_the_same_images_in_any_order_are_written_once(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    again = Draw(IDS[::-1])
    with PixelStore.open(str(tmp_path), IDS[::-1], PREPROCESSING, again) as store:
        assert torch.equal(store.gather(store.rows_of(IDS[4:5]))[0], image_of(IDS[4]))
    assert again.drawn == []
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"resize": 41},
        {"interpolation": "bicubic"},
        {"crop_mode": "squash"},
        {"mean": (0.4, 0.5, 0.5)},
        "ids",
        "version",
    ],
)
def test_other_images_or_another_transform_are_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object] | str
) -> None:
    open_store(tmp_path).close()
    ids = IDS[1:] if change == "ids" else IDS
    if change == "version":
        monkeypatch.setattr(pixels_module, "PIXELS_VERSION", 2)
    preprocessing = replace(PREPROCESSING, **change) if isinstance(change, dict) else PREPROCESSING
    draw = Draw(ids)
    PixelStore.open(str(tmp_path), ids, preprocessing, draw).close()
    assert len(draw.drawn) == len(ids)
    assert len(files(tmp_path)) == 2


def test_how_pixels_are_normalised_later_makes_no_difference(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    draw = Draw(IDS)
    PixelStore.open(str(tmp_path), IDS, replace(PREPROCESSING, std=(0.1, 0.2, 0.3)), draw).close()
    assert draw.drawn == []


def test_the_file_is_an_array_that_numpy_reads(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    (path,) = files(tmp_path)
    array = np.load(path, mmap_mode="r")
    assert (array.shape, array.dtype) == ((20, 3, 24, 32), np.uint8)
    for image, content_id in zip(array, sorted(IDS), strict=True):
        np.testing.assert_array_equal(image, image_of(content_id).numpy())


def test_an_image_that_is_not_there_is_named(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for other in (*image_ids(3, first=100), "0" * 64, "f" * 64):
            with pytest.raises(DataError, match=f"holds no image {other}"):
                store.rows_of([IDS[0], other])
        for row in (-1, 20):
            with pytest.raises(IndexError):
                store.gather(np.array([row]))


def test_a_file_that_was_cut_off_is_written_anew(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        (path,) = files(tmp_path)
        os.truncate(path, HEADER_BYTES + 5 * IMAGE_BYTES)
        with pytest.raises(DataError, match=r"has become shorter: remove the file"):
            store.gather(np.arange(20))
    draw = Draw(IDS)
    with PixelStore.open(str(tmp_path), IDS, PREPROCESSING, draw) as store:
        assert torch.equal(store.gather(store.rows_of(IDS[:1]))[0], image_of(IDS[0]))
    assert len(draw.drawn) == 20


def test_an_error_while_drawing_leaves_nothing(tmp_path: Path) -> None:
    def draw(rows: Sequence[int]) -> Iterator[torch.Tensor]:
        yield image_of(IDS[0])
        raise DataError("s3://photos/1.jpg is gone")

    with pytest.raises(DataError, match="is gone"):
        PixelStore.open(str(tmp_path), IDS, PREPROCESSING, draw)
    assert files(tmp_path) == []


def test_too_few_images_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="one image for each row"):
        PixelStore.open(str(tmp_path), IDS, PREPROCESSING, lambda rows: map(image_of, IDS[:19]))
    assert files(tmp_path) == []


def test_a_process_that_is_killed_while_it_writes_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    with start_python(STUCK, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        assert [path.suffix for path in files(tmp_path)] == [".part"]
        process.kill()
    assert process.returncode == -signal.SIGKILL
    draw = Draw(IDS)
    with PixelStore.open(str(tmp_path), IDS, PREPROCESSING, draw) as store:
        assert torch.equal(store.gather(store.rows_of(IDS[:1]))[0], image_of(IDS[0]))
    assert len(draw.drawn) == 20
    assert [path.suffix for path in files(tmp_path)] == [".npy"]


def test_of_processes_that_ask_at_once_one_writes(tmp_path: Path) -> None:
    processes = [start_python(OPENER, tmp_path) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ended
    assert sorted(int(printed) for printed, _ in ended) == [0, 0, 20]


def test_threads_may_share_a_store(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def read(seed: int) -> None:
        together.wait()
        for some in np.random.default_rng(seed).integers(0, 20, (50, 8)):
            asked = [IDS[position] for position in some]
            gathered = store.gather(store.rows_of(asked))
            assert all(torch.equal(image, image_of(one)) for image, one in zip(gathered, asked, strict=True))

    with open_store(tmp_path) as store, ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))


def test_files_not_used_for_longest_make_room_but_never_one_that_is_open(tmp_path: Path) -> None:
    sets = [image_ids(20, first=100 * number) for number in range(4)]
    limit = 2 * (HEADER_BYTES + 20 * IMAGE_BYTES)
    with open_store(tmp_path, sets[0], limit) as first:
        open_store(tmp_path, sets[1], limit).close()
        with open_store(tmp_path, sets[2], limit):
            assert len(files(tmp_path)) == 2
            with pytest.raises(DataError, match=r"data\.pixels_max_gb: .* the decoded pixels in .* in use; allow more"):
                open_store(tmp_path, sets[3], limit)
        assert torch.equal(first.gather(first.rows_of(sets[0][:1]))[0], image_of(sets[0][0]))
    open_store(tmp_path, sets[3], limit).close()
    assert sum(path.stat().st_size for path in files(tmp_path)) == limit


def test_gathering_leaves_no_pixels_in_the_memory_of_the_process(tmp_path: Path) -> None:
    program = """
import sys
import numpy as np, psutil, torch
from activation_samples import image_ids
from tlray.catalogue import Preprocessing
from tlray.data.pixels import PixelStore
preprocessing = Preprocessing(input_size=(224, 224), resize=256, crop_mode="center", interpolation="bilinear",
                              mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
ids, image = image_ids(1000), torch.zeros(3, 224, 224, dtype=torch.uint8)  # 150 MB
store = PixelStore.open(sys.argv[1], ids, preprocessing, lambda rows: (image for _ in rows))
store.gather(np.arange(32))
before = psutil.Process().memory_info().rss
for start in range(0, 1000, 20):
    store.gather(np.arange(start, start + 20))
print(psutil.Process().memory_info().rss - before)
"""
    assert int(run_python(program, tmp_path)) < 30e6
