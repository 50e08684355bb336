"""Damages weights files at random and reads them: each is weights or one line that says what is wrong, nothing else.

    python -m scripts.fuzz_weights --count 20000 --seed 0        from the repository's root; some minutes
    python -m scripts.fuzz_weights --count 1 --first 4711 --keep folder      one file again, kept in a folder

File number n of a seed is always the same: a safetensors file or a torch.save file of either kind with a few
changes, half of them near its start. A process of its own reads it, which may take MEMORY beyond what it starts with.
Prints what came of the files, and exits with 1 where anything failed.
"""

import functools
import io
import os
import random
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors.torch import save

from scripts.fuzz_decode import damaged
from tests.fuzzing import Fuzz, limit_memory, run
from tlray.errors import BackboneError
from tlray.models.weights.read import read_weights

MEMORY = 2**30  # bytes; the whole files have some 10 kB
GOOD = ("weights", "refused")


@functools.cache
def originals() -> list[tuple[str, bytes]]:
    """(ending, contents) of what is damaged."""
    tensors = {
        "conv.weight": torch.arange(288.0).reshape(4, 8, 3, 3),
        "bn.num_batches_tracked": torch.tensor(3),
        "fc.weight": torch.zeros(3, 9, dtype=torch.bfloat16),
    }
    files = [(".safetensors", save(tensors, {"arch": "resnet18", "mean": "0.5,0.5,0.5"}))]
    for content in (tensors, {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in tensors.items()}}):
        for as_archive in (True, False):
            sink = io.BytesIO()
            torch.save(content, sink, _use_new_zipfile_serialization=as_archive)
            files.append((".pth", sink.getvalue()))
    return files


def file_of(seed: int, number: int) -> tuple[str, bytes]:
    """(name, contents) of file `number` of `seed`, damaged."""
    files = originals()
    ending, data = files[random.Random(f"which/{seed}/{number}").randrange(len(files))]
    return f"w{ending}", damaged([data], seed, number)


def outcome(path: Path) -> str:
    """What reading the file comes to: one of GOOD, or what is wrong."""
    try:
        file = read_weights(str(path))
    except BackboneError as error:
        return "refused" if "\n" not in str(error) else f"a reason of several lines: {error}".replace("\n", " ")
    except BaseException as error:
        return f"raised {type(error).__name__}: {error}".replace("\n", " ")
    if not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in file.tensors.items()):
        return "holds what is no tensor"
    return "weights"


def child(seed: int, first: int, stop: int) -> None:
    """Read files first..stop, a line on standard output for each."""
    warnings.simplefilter("ignore")  # torch's, of odd pickles
    with tempfile.TemporaryDirectory(prefix="tlray-fuzz-") as folder:
        for ending, data in originals():
            (Path(folder) / f"whole{ending}").write_bytes(data)
            outcome(Path(folder) / f"whole{ending}")  # loads what is loaded late
        limit_memory(MEMORY)
        for number in range(first, stop):
            name, data = file_of(seed, number)
            path = Path(folder) / name
            path.write_bytes(data)
            os.write(sys.stdout.fileno(), (outcome(path) + "\n").encode(errors="replace"))


if __name__ == "__main__":
    sys.exit(run(Fuzz("scripts.fuzz_weights", "Read randomly damaged weights files", GOOD, file_of, child)))
