"""`dotted.key=value` of the command line -> a change of the configuration's document.

    apply_override(document, "training.epochs=5")
    apply_override(document, "data.train=/photos #2")       # all of it is the path

The value is the shell word as it stands. Where the field is text, so is the word, whatever it looks like.
"""

from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from tlray.config.run import RunConfig
from tlray.config.text import TextError, check_string, read_word
from tlray.errors import ConfigError

TEXTS = tuple[str, ...]
NONE = "null"  # a text field that may be left out takes this word for "left out"


def apply_override(document: dict[str, Any], override: str) -> None:
    """Set, add or replace one value; ConfigError that names the key where that is not possible."""
    path, equals, word = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"{override[:200]!r} is not of the form key=value (for example training.epochs=5)")
    *parents, last = path.split(".")
    node: Any = document
    for part in parents:
        node = _below(path, part, node)
    try:
        check_string(path)
        value = _value(path, word)
    except TextError as error:
        raise ConfigError(f"{path[:200]}: {error}") from None
    if isinstance(node, list):
        node[_index(path, last, node)] = value
    else:
        node[last] = value


def _below(path: str, part: str, node: Any) -> Any:
    """The section or list named `part`; a section that is not there, or is null, is made."""
    if isinstance(node, list):
        found = node[_index(path, part, node)]
    else:
        found = node[part] = {} if node.get(part) is None else node[part]
    if not isinstance(found, (dict, list)):
        raise ConfigError(f"{path[:200]}: {part} is a single value and has no key below it")
    return found


def _index(path: str, part: str, values: list[Any]) -> int:
    if not (part.isascii() and part.isdecimal()) or len(part) > 9 or int(part) >= len(values):
        raise ConfigError(f"{path[:200]}: {part[:40]!r} is not an index of a list of {len(values)}")
    return int(part)


def _value(path: str, word: str) -> Any:
    """The word as the field at `path` takes it."""
    types = _types_at(path)
    if str in types and types <= {str, NoneType}:
        check_string(word)
        return None if word == NONE and NoneType in types else word
    if TEXTS in types and not word.startswith("["):
        check_string(word)
        return [word]
    return read_word(word)


def _types_at(path: str) -> set[Any]:
    """The types that the field at `path` may have, without unions and annotations; empty for a field unknown."""
    types: set[Any] = {RunConfig}
    for part in path.split("."):
        types = {leaf for kind in types for leaf in _plain_types(_child(kind, part))}
    return types


def _child(kind: Any, part: str) -> Any:
    """The type of what `part` names in a section, a list or a mapping of type `kind`; None where there is none."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_fields[part].annotation if part in kind.model_fields else None
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is dict:
        return arguments[1]
    return arguments[0] if origin is tuple and part.isdecimal() else None


def _plain_types(kind: Any) -> set[Any]:
    """`Annotated[str, ...] | None` -> {str, NoneType}"""
    if kind is None:
        return set()
    if hasattr(kind, "__metadata__"):
        return _plain_types(get_args(kind)[0])
    if get_origin(kind) in (dict, tuple) or not get_args(kind):
        return {kind}
    return {leaf for argument in get_args(kind) for leaf in _plain_types(argument)}
