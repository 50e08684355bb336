"""Small JSON files below ~/.cache/tlray (XDG_CACHE_HOME is honoured): what takes time to find out, found out once.

    seconds = remembered("steps", {"backbone": "timm/resnet18", "device": ...}, measure)

Whatever lies there can be made again: a damaged file is, and a home that cannot be written costs only the time.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def folder(kind: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tlray" / kind


def remembered(kind: str, what: Mapping[str, Any], find: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What `find` gives for `what`, which names all that the figures depend on."""
    words = json.dumps(what, sort_keys=True)
    path = folder(kind) / f"{hashlib.sha256(words.encode()).hexdigest()[:24]}.json"
    known = read(path)
    if isinstance(known, dict) and isinstance(known.get("figures"), dict):
        return known["figures"]
    figures = find()
    write(path, {**what, "figures": figures})
    return figures


def read(path: Path) -> Any:
    """What the file holds; None where it is not there, or damaged."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_bytes())
    return None


def write(path: Path, content: Any) -> None:
    """Whole or not at all."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(content, file)
            os.replace(name, path)
        except OSError:
            Path(name).unlink(missing_ok=True)
