"""The class of a WebDataset sample, from the contents of its .cls, .json or .txt."""

import json
from collections.abc import Mapping
from typing import Any

from tlray.data.class_names import ClassNameError, class_name
from tlray.errors import nearest

LABEL_ENDINGS = ("cls", "json", "txt")
MAX_LABEL_BYTES = 2**20
MAX_CLASS_CHARACTERS = 1000  # more is a text, not a name
NUM_KEYS = 8  # named in a reason


def class_of(sample: str, labels: Mapping[str, bytes], key: str) -> tuple[str, str]:
    """(class, reason why there is none). `labels`: contents by ending; `key`: where a .json has the class."""
    for kind in LABEL_ENDINGS:
        endings = [ending for ending in labels if ending.rpartition(".")[2] == kind]
        if endings:
            ending = min(endings, key=len)  # .json before .meta.json
            class_name, reason = _class_in(kind, labels[ending], key)
            return class_name, reason and f"sample {sample!r}: its .{ending} {reason}"
    return "", f"sample {sample!r} has no label (.cls, .json or .txt)"


def _class_in(kind: str, data: bytes, key: str) -> tuple[str, str]:
    if len(data) > MAX_LABEL_BYTES:
        return "", f"is larger than {MAX_LABEL_BYTES} bytes"
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return "", "is not text in UTF-8"
    return _class_in_json(text, key) if kind == "json" else _name(text, "holds no class")


def _class_in_json(text: str, key: str) -> tuple[str, str]:
    try:
        document = json.loads(text)
    except RecursionError:
        return "", "is not JSON that can be read: nested too deeply"
    except ValueError as error:
        return "", f"is not JSON ({error})"
    if not isinstance(document, dict):
        return "", f"holds no object with a {key!r} (data.columns.label)"
    if key not in document:
        near = "".join(f"; did you mean {name!r}?" for name in nearest(key, document))
        keys = ", ".join(repr(name[:50]) for name in list(document)[:NUM_KEYS]) or "nothing"
        more = ", ..." if len(document) > NUM_KEYS else ""
        return "", f"has no {key!r} (data.columns.label names another key); it has {keys}{more}{near}"
    return _name(document[key], f"has no class in {key!r}, but {_kind(document[key])}")


def _name(value: Any, otherwise: str) -> tuple[str, str]:
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        name = str(value)
        if len(name) > MAX_CLASS_CHARACTERS:
            return "", f"holds {len(name)} characters, which is no class"
        try:
            return (class_name(name), "") if name.strip() else ("", otherwise)
        except ClassNameError as error:
            return "", f"holds no class: {error}"
    return "", otherwise


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", float: "a fraction", list: "a list", dict: "an object", str: "an empty text"}
    return kinds.get(type(value), "null")
