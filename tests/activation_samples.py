"""Made-up activations for the tests of their store: values that tell their image, so that a wrong row is seen.

store = ActivationStore(str(tmp_path), cache=str(tmp_path / "cache"))
ids = image_ids(8)
store.write_shard(sample_key(), ids, values_of(ids), run="a")
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tlray.activations.keys import ActivationKey

ROOT = Path(__file__).parent.parent
KEY = ActivationKey(
    backbone="timm/test_resnet",
    options="{}",
    weights_hash="0" * 64,
    num_frozen=4,
    preprocessing='{"input_size": [32, 32], "resize": 36}',
    augmentation="none",
    view=0,
    dtype="float16",
    precision="float32",
    split_version=1,
    pixels='{"version": 1, "max_side": null}',
)


def sample_key(**fields: Any) -> ActivationKey:
    return replace(KEY, **fields)


def image_ids(num_images: int, first: int = 0) -> list[str]:
    """Content ids of images that are told apart by their number."""
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(first, first + num_images)]


def values_of(
    content_ids: Sequence[str], shapes: Sequence[tuple[int, ...]] = ((6,), (2, 3, 3)), dtype: str = "float16"
) -> list[np.ndarray]:
    """One array (N, ...) for each shape, in which every row follows from its image alone."""
    values = []
    for number, shape in enumerate(shapes):
        rows = []
        for content_id in content_ids:
            random = np.random.default_rng([int(content_id[:8], 16), number])
            rows.append(random.standard_normal(shape).astype(dtype))
        values.append(np.stack(rows))
    return values


def start_python(program: str, *arguments: object, **environment: str) -> "subprocess.Popen[str]":
    """Another process that runs `program`, which may import this module; its output is text."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )


def run_python(program: str, *arguments: object, **environment: str) -> str:
    """What `program` prints; it must end well."""
    process = start_python(program, *arguments, **environment)
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    return printed


def flip_byte(path: Path, offset: int = -1) -> None:
    """Damage a file where its size does not tell."""
    damaged = bytearray(path.read_bytes())
    damaged[offset] ^= 0xFF
    path.write_bytes(damaged)
