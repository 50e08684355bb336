"""Images of absurd shape are bad images, and a long strip never becomes a huge one on its way to a network's input."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from small_bundle import small_bundle

from tlray.catalogue import Preprocessing
from tlray.config import DataConfig
from tlray.data import transforms
from tlray.data.decode import MAX_RATIO, BadImageError, check, decode
from tlray.data.inspect import OK, Inspected
from tlray.data.manifest import make_manifest
from tlray.data.sources import open_source
from tlray.data.transforms import LARGEST_RESIZED, eval_transform, train_transform
from tlray.export import load
from tlray.inference.classify import Classifier, find_model
from tlray.inference.predict import evaluate

PLAIN = Preprocessing(
    input_size=(64, 64), resize=72, crop_mode="center", interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3
)


def encoded(width: int, height: int, format: str = "PNG") -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(sink, format)
    return sink.getvalue()


def strip(height: int, width: int) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(("width", "height"), [(5 * MAX_RATIO + 1, 5), (5, 5 * MAX_RATIO + 1), (20_000, 1)])
def test_an_image_that_is_too_thin_is_bad_with_its_sides_as_the_reason(width: int, height: int, format: str) -> None:
    if format == "WEBP" and max(width, height) > 16383:
        pytest.skip("more than WebP holds")
    for way in (decode, check):
        with pytest.raises(BadImageError, match=rf"^too thin: {width} x {height} pixels, where one side"):
            way(encoded(width, height, format))  # type: ignore[operator]


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_an_image_of_just_the_bound_is_an_image(format: str) -> None:
    assert decode(encoded(5 * MAX_RATIO, 5, format)).shape == (5, 5 * MAX_RATIO, 3)
    assert check(encoded(5, 5 * MAX_RATIO, format)) == (5 * MAX_RATIO, 5)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("augmentation", ["none", "light"])
@pytest.mark.parametrize("short", [1, 3, 90])
def test_the_middle_of_a_strip_is_what_the_whole_strip_would_give(
    short: int, augmentation: str, interpolation: str, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = replace(PLAIN, interpolation=interpolation)  # type: ignore[arg-type]
    image = strip(short, 40 * short)
    image = image.transpose(1, 2) if turned else image

    def result() -> torch.Tensor:
        return train_transform(image, p, augmentation, torch.Generator().manual_seed(3))

    whole = result()
    monkeypatch.setattr(transforms, "LARGEST_RESIZED", 72 * 72 * 10)
    monkeypatch.setattr(transforms, "_resize_middle", counted := Counted(transforms._resize_middle))
    assert torch.equal(result(), whole)
    assert counted.calls == 1


@pytest.mark.parametrize("length", [731, 740, 1999])
def test_a_strip_whose_sides_do_not_divide_differs_by_a_part_of_a_pixel(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse = torch.from_numpy(np.linspace(0, 255, length).astype(np.uint8)).expand(3, 23, length)
    whole = eval_transform(coarse, PLAIN)
    monkeypatch.setattr(transforms, "LARGEST_RESIZED", 72 * 72 * 10)
    assert (eval_transform(coarse, PLAIN).int() - whole.int()).abs().max() <= 1


@pytest.mark.parametrize("augmentation", ["none", "light", "standard"])
@pytest.mark.parametrize("size", [64, 256, 1024])
def test_no_image_that_decodes_is_resized_to_more_than_the_bound(
    size: int, augmentation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transforms.F, "resize", resize := Largest(transforms.F.resize))
    p = PLAIN.with_input_size(size)
    for image in (strip(1, MAX_RATIO), strip(7, 7 * MAX_RATIO), strip(7 * MAX_RATIO, 7)):
        ready = train_transform(image, p, augmentation, torch.Generator().manual_seed(0))
        assert ready.shape == (3, size, size)
    assert resize.largest <= LARGEST_RESIZED


class Counted:
    """A function that counts its calls."""

    def __init__(self, function) -> None:
        self._function, self.calls = function, 0

    def __call__(self, *arguments, **options):
        self.calls += 1
        return self._function(*arguments, **options)


class Largest:
    """A transform that remembers the pixels of its largest result."""

    def __init__(self, function) -> None:
        self._function, self.largest = function, 0

    def __call__(self, *arguments, **options):
        result = self._function(*arguments, **options)
        self.largest = max(self.largest, result.shape[-1] * result.shape[-2])
        return result


@pytest.fixture
def with_thin_ones(image_folder: Path, tmp_path: Path) -> Path:
    """Class folders, and among the images of one class two that nothing can be made of."""
    for label in ("red", "green", "blue"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for path in (image_folder / label).iterdir():
            (tmp_path / "images" / label / path.name).symlink_to(path)
    (tmp_path / "images" / "red" / "03b.png").write_bytes(encoded(2_000_000, 1))
    (tmp_path / "images" / "red" / "03c.png").write_bytes(encoded(1, 20_000))
    return tmp_path / "images"


def test_a_manifest_has_them_as_bad_images(with_thin_ones: Path) -> None:
    manifest = make_manifest(DataConfig(train=str(with_thin_ones), max_bad_fraction=0.1))
    assert [image.reason[:8] for image in manifest.bad] == ["too thin", "too thin"]


def test_what_an_earlier_version_took_is_judged_again(with_thin_ones: Path) -> None:
    data = DataConfig(train=str(with_thin_ones), max_bad_fraction=0.1)
    entries = open_source("data.train", str(with_thin_ones), data).entries()
    thin = [entry for entry in entries if entry.uri.endswith(("03b.png", "03c.png"))]
    known = {(entry.uri, entry.version): Inspected(entry.uri, entry.version, "ab" * 32, 9, 20_000, 1) for entry in thin}
    assert {found.status for found in known.values()} == {OK}
    manifest = make_manifest(data, known=known)
    assert {image.uri for image in manifest.bad} == {entry.uri for entry in thin}


def test_one_of_them_ends_no_others_prediction(with_thin_ones: Path, image_folder: Path) -> None:
    bundle = str(small_bundle(image_folder).folder)
    paths = sorted(str(path) for path in with_thin_ones.rglob("*.*"))
    predictions = load(bundle)(paths)
    failed = {Path(str(p.uri)).name: str(p.error)[:8] for p in predictions if p.error}
    assert failed == {"03b.png": "too thin", "03c.png": "too thin"}
    assert len(predictions) == len(paths) == 38
    evaluation = evaluate(bundle, str(with_thin_ones))
    assert (evaluation.num_images, len(evaluation.bad)) == (36, 2)
    arrays = [np.zeros((1, 5000, 3), np.uint8), np.zeros((9, 9, 3), np.uint8), torch.zeros(3, 1, 5000).byte()]
    assert [(p.error or "")[:8] for p in load(bundle)(arrays)] == ["too thin", "", "too thin"]

    rows = pa.table({"uri": paths, "version": [""] * 38, "error": pa.array([None] * 38, pa.string())})
    table = pq.read_table(io.BytesIO(Classifier(find_model(bundle), "cpu").classify(rows, 2)))
    assert sum(error is not None for error in table["error"].to_pylist()) == 2


def test_the_longest_strip_that_is_taken_needs_little_memory(tmp_path: Path) -> None:
    """In a process of its own, whose memory is bounded once everything is imported."""
    (tmp_path / "strip.png").write_bytes(encoded(MAX_RATIO * 40, 40))
    (tmp_path / "refused.png").write_bytes(encoded(20_000, 1))
    program = """
import resource, sys, torch
torch.set_num_threads(1)
from tlray.catalogue import Preprocessing
from tlray.data.decode import BadImageError, decode
from tlray.data.transforms import eval_transform
p = Preprocessing(input_size=(518, 518), resize=592, crop_mode="center", interpolation="bicubic",
                  mean=(0.5,) * 3, std=(0.25,) * 3)
eval_transform(torch.zeros(3, 700, 600, dtype=torch.uint8), p)
pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + 400_000_000,) * 2)
try:
    decode(open(sys.argv[2], "rb").read())
except BadImageError as error:
    print(error.reason.split(":")[0])
image = torch.from_numpy(decode(open(sys.argv[1], "rb").read())).permute(2, 0, 1)
print(tuple(eval_transform(image, p).shape))
"""
    command = [sys.executable, "-c", program, str(tmp_path / "strip.png"), str(tmp_path / "refused.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["too thin", "(3, 518, 518)"]
