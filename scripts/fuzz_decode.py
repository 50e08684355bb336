"""Damages image files at random and decodes them: nothing may crash, hang, take too much memory or raise anything odd.

python -m scripts.fuzz_decode --count 100000 --seed 0        from the repository's root; some minutes
python -m scripts.fuzz_decode --count 1 --first 4711 --keep folder      one file again, kept in a folder

File number n of a seed is always the same: one of the odd files of tests/hostile_images.py, or of a large JPEG, with a
few changes. A child process decodes it whole and with `at_least`, and checks it; the three must agree. The child may
take MEMORY beyond what it starts with, and tests/fuzzing.py's SECONDS for a file. Prints what came of the files, and
exits with 1 where anything failed.
"""

import functools
import io
import os
import random
import sys
import warnings

from PIL import Image

from tests.fuzzing import Fuzz, change, limit_memory, run
from tests.hostile_images import every_case, picture
from tlray.data.decode import MAX_PIXELS, BadImageError, check, decode

MEMORY = 32 * MAX_PIXELS  # bytes: what the largest image allowed takes in the worst of its formats, 2.7 GiB
AT_LEAST = (100, 100)
GOOD = ("image", "bad image")  # outcomes; the others are failures


@functools.cache
def originals() -> list[bytes]:
    """What is damaged; the large ones are those that `at_least` reduces."""
    large = Image.fromarray(picture(1000, 1100))
    files = [case.data for case in every_case() if case.pixels is not None]
    for options in ({}, {"progressive": True}):
        buffer = io.BytesIO()
        large.save(buffer, "JPEG", quality=20, **options)
        files.append(buffer.getvalue())
    return files


def damaged(files: list[bytes], seed: int, number: int) -> bytes:
    """File `number` of `seed`."""
    choice = random.Random(f"{seed}/{number}")
    data = bytearray(choice.choice(files))
    for _ in range(choice.choice((1, 1, 1, 2, 3, 8))):
        change(data, files, choice)
    return bytes(data)


def outcome(data: bytes) -> str:
    """What decoding makes of it: one of GOOD, or what is wrong."""
    results: list[object] = []
    try:
        for way in (lambda: decode(data).shape[:2], lambda: check(data), lambda: decode(data, AT_LEAST).shape[:2]):
            try:
                results.append(way())
            except BadImageError as error:
                results.append(error.reason)
    except MemoryError:
        return "too much memory"
    except BaseException as error:
        return f"raised {type(error).__name__}: {error}".replace("\n", " ")
    whole, checked, reduced = results
    if whole != checked or isinstance(whole, str) != isinstance(reduced, str):
        return f"decode and check differ: {results}".replace("\n", " ")
    return "bad image" if isinstance(whole, str) else "image"


def child(seed: int, first: int, stop: int) -> None:
    """Decode files first..stop, a line on standard output for each."""
    warnings.simplefilter("ignore")  # Pillow's, of odd metadata
    files = originals()
    for data in files:
        outcome(data)  # loads what is loaded late
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # libtiff's word on each
    limit_memory(MEMORY)
    for number in range(first, stop):
        os.write(sys.stdout.fileno(), (outcome(damaged(files, seed, number)) + "\n").encode(errors="replace"))


def file_of(seed: int, number: int) -> tuple[str, bytes]:
    return "image", damaged(originals(), seed, number)


if __name__ == "__main__":
    sys.exit(run(Fuzz("scripts.fuzz_decode", "Decode randomly damaged image files", GOOD, file_of, child)))
