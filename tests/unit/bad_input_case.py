"""One bad input: the command, the files that it finds, and what its one line of error must say."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

CONFIG = """\
name: bad
storage: runs
data: {train: photos}
backbones: [{id: timm/test_resnet, weights: none, input_size: 32}]
training: {epochs: 1, batch_size: 8}
baseline: {backbone: {id: timm/test_resnet, weights: none, input_size: 32}}
"""
Content = str | bytes | Callable[[Path], None]  # of a file, or makes it


@dataclass(frozen=True)
class Case:
    arguments: tuple[str, ...]  # of tlray; run in a folder that holds `files`, config.yaml and photos/
    words: tuple[str, ...]  # all of them in the one line
    files: Mapping[str, Content] = field(default_factory=dict)
    code: int = 2

    @property
    def name(self) -> str:
        shown = " ".join(self.arguments) + "".join(f" [{name}]" for name in self.files)
        return ascii(shown)[1:-1][:90]


def command(arguments: str, *words: str, files: Mapping[str, Content] | None = None, code: int = 2) -> Case:
    return Case(tuple(arguments.split()), words, files or {}, code)


def override(value: str, *words: str) -> Case:
    """`tlray run` on the good configuration with one override."""
    return Case(("run", "config.yaml", value), words)


def text(config: str | bytes, *words: str) -> Case:
    """`tlray run` on a configuration of that text."""
    return Case(("run", "config.yaml"), words, {"config.yaml": config})


def changed(old: str, new: str, *words: str) -> Case:
    """`tlray run` on the good configuration with one place replaced."""
    assert CONFIG.count(old) == 1
    return text(CONFIG.replace(old, new), *words)


def planned(overrides: str, *words: str, files: Mapping[str, Content] | None = None) -> Case:
    """`tlray plan`, which looks at images and weights."""
    return Case(("plan", "config.yaml", *overrides.split()), words, files or {})


def png(seed: int, size: tuple[int, int] = (24, 24)) -> bytes:
    """An image that no other seed gives."""
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def write_files(root: Path, files: Mapping[str, Content]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
