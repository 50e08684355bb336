"""The fast way with JPEGs never changes what Pillow says of a file: the same pixels, or the same reason."""

import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import fuzz_decode
from tests import fuzzing
from tests.hostile_images import encoded, exif, picture, segment
from tlray.data import jpeg
from tlray.data.decode import BadImageError, check, decode, shape_problem

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of EXIF blocks that make no sense


def pillows(data: bytes) -> np.ndarray | str:
    """Pixels of a JPEG without orientation, or what Pillow says, or what is wrong with its shape."""
    try:
        image = Image.open(io.BytesIO(data), formats=["JPEG"])
        return shape_problem(image.height, image.width) or np.asarray(image.convert("RGB"))
    except Image.UnidentifiedImageError:
        return "not an image, or of an unknown format"
    except (OSError, SyntaxError) as error:
        return " ".join(f"{error}".split())


def assert_same_as_pillow(data: bytes) -> bool:
    """Whether it is an image."""
    expected = pillows(data)
    if isinstance(expected, str):
        for way in (decode, check):
            with pytest.raises(BadImageError) as caught:
                way(data)
            assert caught.value.reason == expected
        return False
    np.testing.assert_array_equal(decode(data), expected)
    assert check(data) == expected.shape[:2]
    return True


JPEGS = {
    "baseline": encoded(picture(), "JPEG", quality=60),
    "progressive": encoded(picture(), "JPEG", quality=60, progressive=True),
    "restart markers": encoded(picture(), "JPEG", quality=60, restart_marker_blocks=2),
    "gray": encoded(picture()[..., 0], "JPEG", quality=60),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_cut_anywhere_a_jpeg_is_what_pillow_says(kind: str) -> None:
    data = JPEGS[kind]
    verdicts = [assert_same_as_pillow(data[:end]) for end in range(20, len(data), 3)]
    assert not any(verdicts[: -len(verdicts) // 10])


@pytest.mark.parametrize("kind", JPEGS)
def test_with_any_bytes_changed_a_jpeg_is_what_pillow_says(kind: str) -> None:
    choice = random.Random(kind)
    verdicts = []
    for _ in range(300):
        data = bytearray(JPEGS[kind])
        for _ in range(choice.choice((1, 1, 4))):
            data[choice.randrange(len(data))] = choice.randrange(256)
        verdicts.append(assert_same_as_pillow(bytes(data)))
    assert 20 < sum(verdicts) < 280


def test_ordinary_jpegs_are_decoded_without_pillow(monkeypatch: pytest.MonkeyPatch, shared_dir: Path) -> None:
    paths = sorted((shared_dir / "data/hymenoptera/val").glob("*/*.jpg"))[::10]
    files = {path.name: path.read_bytes() for path in paths}
    expected = {name: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for name, data in files.items()}
    monkeypatch.setattr(Image, "open", None)
    for name, data in files.items():
        np.testing.assert_array_equal(decode(data), expected[name])
        assert check(data) == expected[name].shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_an_ordinary_orientation_is_read_without_pillow(orientation: int, order: str) -> None:
    data = JPEGS["baseline"]
    header = jpeg.read_header(data[:20] + exif(orientation, order) + data[20:])
    assert header is not None
    assert header.orientation == orientation


def metadata() -> Iterator[bytes]:
    """APP1 segments with something changed in them."""
    choice = random.Random(0)
    for orientation in range(1, 9):
        for order in "<>":
            whole = exif(orientation, order)
            for at in range(10, len(whole)):
                yield whole[:at] + choice.randbytes(1) + whole[at + 1 :]
            for end in range(10, len(whole), 5):
                yield segment(0xE1, whole[4:end])


def test_whatever_the_metadata_says_images_are_turned_as_pillow_would() -> None:
    plain = Image.fromarray(picture(8, 16))
    data = encoded(plain, "JPEG")
    turned = 0
    for block in metadata():
        whole = data[:20] + block + data[20:]
        try:
            with Image.open(io.BytesIO(whole)) as image:
                orientation = image.getexif().get(0x0112, 1)
        except (OSError, SyntaxError):
            orientation = 1
        tall = orientation in (5, 6, 7, 8)
        turned += tall
        try:
            shape = decode(whole).shape
        except BadImageError:
            assert isinstance(pillows(whole), str)
            continue
        assert shape == ((16, 8, 3) if tall else (8, 16, 3))
        assert check(whole) == shape[:2]
    assert turned > 200


def test_a_thousand_damaged_files_neither_crash_nor_hang_nor_take_too_much_memory() -> None:
    command = [sys.executable, "-m", "scripts.fuzz_decode", "--count", "1000", "--seed", "77"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["count"] == 1000 == counts["image"] + counts["bad image"]
    assert min(counts["image"], counts["bad image"]) > 200


@pytest.mark.parametrize(
    ("program", "failure"),
    [
        ("import os; os.abort()", "ended the process (-6)"),
        ("import os, time; os.write(1, b'image\\n'); time.sleep(60)", "took more than 1 s"),
    ],
)
def test_the_fuzzer_tells_a_crash_from_a_hang_and_goes_on_with_the_next_file(
    program: str, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = subprocess.Popen
    monkeypatch.setattr(fuzzing, "SECONDS", 1)
    monkeypatch.setattr(
        fuzzing.subprocess, "Popen", lambda _, **options: popen([sys.executable, "-c", program], **options)
    )
    found = list(fuzzing.outcomes("scripts.fuzz_decode", 0, 10, 13))
    assert [number for number, _ in found] == [10, 11, 12]
    assert failure in dict(found).values()
    assert {result for _, result in found} <= {"image", failure}


@pytest.mark.parametrize("error", [ValueError("x"), MemoryError(), SystemError("x"), KeyboardInterrupt()])
def test_the_fuzzer_takes_any_other_exception_for_a_failure(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(data: bytes) -> None:
        raise error

    monkeypatch.setattr(fuzz_decode, "check", broken)
    assert fuzz_decode.outcome(JPEGS["baseline"]) not in fuzz_decode.GOOD


def test_the_fuzzer_takes_a_check_that_differs_from_decode_for_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_decode, "check", lambda data: (1, 1))
    assert "differ" in fuzz_decode.outcome(JPEGS["baseline"])


def test_files_of_the_fuzzer_depend_on_their_seed_and_number_alone() -> None:
    files = [JPEGS["baseline"], JPEGS["gray"]]
    assert [fuzz_decode.damaged(files, 3, number) for number in range(20)] == [
        fuzz_decode.damaged(files, 3, number) for number in range(20)
    ]
    assert len({fuzz_decode.damaged(files, seed, number) for seed in range(5) for number in range(20)}) > 95
