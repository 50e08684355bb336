"""Every error that tlray raises on purpose, and the exit code that the command line gives it.

TlrayError                 1  the work failed
├── InputError             2  what the user gave is wrong; the message names it and the remedy
│   ├── ConfigError           the configuration
│   ├── BackboneError         a backbone, or its weights
│   ├── DataError             the images
│   │   └── BadImageError         one that cannot be decoded (data/decode.py)
│   ├── StorageError          a location that cannot be read or written
│   │   ├── UnreachableError   1  a store that gives no answer for now: the same may succeed later
│   │   ├── NotFoundError         a file, object or folder that is not there (storage)
│   │   └── DamagedError          a file that is not what was written
│   └── ClusterError          more than the cluster has
├── TrialError             1  a trial could not be carried out
│   └── DivergenceError       its loss is no longer a number
├── NothingToDo            3  a retraining of what has been judged already
│   └── HeldElsewhere          another process is at work on the same run, or retrains
└── Interrupted          130  stopped from outside; `tlray resume` goes on
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any


class TlrayError(Exception):
    """Base of the tree above; the message is one line that a user can act on."""

    exit_code = 1
    may_pass = False  # True: the same work may succeed later, or once a file is put back; a run it failed is not done


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


class UnreachableError(StorageError):
    exit_code = 1  # nothing that the user gave is known to be wrong
    may_pass = True


class DamagedError(StorageError):
    may_pass = True

    @classmethod
    def of(cls, uri: str, remedy: str) -> "DamagedError":
        return cls(f"{uri} is damaged: {remedy}")


class ClusterError(InputError):
    pass


class TrialError(TlrayError):
    pass


class DivergenceError(TrialError):
    pass


class NothingToDo(TlrayError):
    exit_code = 3


class HeldElsewhere(NothingToDo):
    pass


class Interrupted(TlrayError):
    exit_code = 130


def nearest(name: str, valid: Iterable[str], count: int = 1) -> list[str]:
    """The valid names most like `name`, best first; empty when none is near."""
    return difflib.get_close_matches(name, list(valid), n=count, cutoff=0.5)


def unknown_key(key: str, valid: list[str]) -> str:
    """The message for a key that does not exist: the nearest valid one, then all of them."""
    near = nearest(key[:MAX_SHOWN], valid)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown key {shortened(repr(key))}; {hint}valid keys: {', '.join(valid)}"


MAX_SHOWN = 200  # characters of a value in a message
INSTEAD = {  # of pydantic's words for its commonest errors
    "bool_type": "give true or false",
    "dict_type": "give keys with values",
    "finite_number": "give a finite number",
    "float_type": "give a number",
    "int_from_float": "give a whole number",
    "int_type": "give a whole number",
    "string_pattern_mismatch": "begin with a letter or digit, and use letters, digits, '.', '_' and '-' alone",
    "string_too_short": "it is empty: give a value",
    "string_type": "give text, in quotes where it looks like something else",
    "model_type": "give keys with values",
    "tuple_type": "give a list, such as [a, b]",
}


def plain_reason(error: Mapping[str, Any]) -> str:
    """One of pydantic's error dictionaries as half a sentence that ends with the value it refused."""
    message = INSTEAD.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = error["input"]
    if error["type"] in ("missing", "value_error") or not (value is None or isinstance(value, str | int | float)):
        return message
    written = json.dumps(value) if value is None or isinstance(value, bool) else shortened(repr(value))
    return f"{message}, not {written}"  # null, true and false as in a configuration


def shortened(text: str) -> str:
    """For a message: a long value's beginning."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} characters)"
