"""Every error that tlray raises on purpose, and the exit code that the command line gives it.

TlrayError                 1  the work failed
├── InputError             2  what the user gave is wrong; the message names it and the remedy
│   ├── ConfigError           the configuration
│   ├── BackboneError         a backbone, or its weights
│   ├── DataError             the images
│   │   └── BadImageError         one that cannot be decoded (data/decode.py)
│   ├── StorageError          a location that cannot be read or written
│   │   └── NotFoundError         a file, object or folder that is not there (storage)
│   └── ClusterError          more than the cluster has
├── TrialError             1  a trial could not be carried out
├── NothingToDo            3  a retraining of what has been judged already, or beside another one
└── Interrupted          130  stopped from outside; `tlray resume` goes on
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class TlrayError(Exception):
    """Base of the tree above; the message is one line that a user can act on."""

    exit_code = 1


class InputError(TlrayError, ValueError):
    exit_code = 2


class ConfigError(InputError):
    pass


class BackboneError(InputError):
    pass


class DataError(InputError):
    pass


class StorageError(InputError):
    pass


class ClusterError(InputError):
    pass


class TrialError(TlrayError):
    pass


class NothingToDo(TlrayError):
    exit_code = 3


class Interrupted(TlrayError):
    exit_code = 130


def nearest(name: str, valid: Iterable[str], count: int = 1) -> list[str]:
    """The valid names most like `name`, best first; empty when none is near."""
    return difflib.get_close_matches(name, list(valid), n=count, cutoff=0.5)


def unknown_key(key: str, valid: list[str]) -> str:
    """The message for a key that does not exist: the nearest valid one, then all of them."""
    near = nearest(key, valid)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown key {key!r}; {hint}valid keys: {', '.join(valid)}"


def plain_reason(error: Mapping[str, Any]) -> str:
    """One of pydantic's error dictionaries as half a sentence that ends with the value it refused."""
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    shows_value = error["type"] not in ("missing", "value_error") and isinstance(error["input"], (str, int, float))
    return f"{message}, not {error['input']!r}" if shows_value else message
