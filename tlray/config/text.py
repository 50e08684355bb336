"""Text that a user wrote -> plain values: YAML with the scalars of its 1.2 core schema, or JSON.

    read_yaml("train: yes\nepochs: 10")      # {"train": "yes", "epochs": 10}
    read_word("[0.1, 0.01]")                 # [0.1, 0.01]
    read_word("/mnt/run #2")                 # "/mnt/run #2"

The core schema knows null, true, false and numbers. Octals, dates, sexagesimals, yes and no, merge keys and tags belong
to older versions of YAML; here they are text or refused. Every mistake is a TextError of one line.
"""

import json
import math
import re
import unicodedata
from typing import Any

import yaml

from tlray.errors import shortened

MAX_CHARACTERS = 2**19  # of one text: PyYAML reads a quarter of a million in a second
MAX_DEPTH = 32
MAX_VALUES = 200_000  # aliases written out
MAX_STRING = 4096  # the longest path of Linux
MAX_NUMBER = 64  # characters

NULLS = ("", "~", "null", "Null", "NULL")
TRUES = ("true", "True", "TRUE")
FALSES = ("false", "False", "FALSE")
INTEGER = re.compile(r"[-+]?[0-9]+")
LEADING_ZERO = re.compile(r"[-+]?0[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")
BASES = ((re.compile(r"0o[0-7]+"), 8), (re.compile(r"0x[0-9a-fA-F]+"), 16))
FRACTION = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
INFINITY = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
NOT_PRINTED = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories of control characters, halves of pairs, line ends


class TextError(ValueError):
    """The text cannot be read; the message is half a sentence."""


def read_yaml(text: str) -> Any:
    """The one document of a YAML text; TextError with the line."""
    if len(text) > MAX_CHARACTERS:
        raise TextError(f"it has more than {MAX_CHARACTERS} characters: take some out")
    try:
        document = _load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}: " if mark is not None else ""
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise TextError(place + " ".join(reason.split())) from None
    except yaml.YAMLError as error:
        raise TextError(" ".join(str(error).split())) from None
    except RecursionError:
        raise TextError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    _check(document)
    return document


def read_word(word: str) -> Any:
    """A list or an object where the word begins like one, else a scalar: all of the word, blanks and # included."""
    value = _read_collection(word) if word.startswith(("[", "{")) else read_scalar(word)
    _check(value)
    return value


def read_scalar(text: str) -> Any:
    """A plain scalar of the core schema; what is no null, boolean or number is the text itself."""
    if text in NULLS:
        return None
    if text in TRUES or text in FALSES:
        return text in TRUES
    if not (text[0] in "+-." or text[0].isdecimal()):
        return text
    for pattern, base in BASES:
        if pattern.fullmatch(text):
            return int(_short(text), base)
    if LEADING_ZERO.fullmatch(text):
        raise TextError(f"{text!r} is a number with a leading zero: write it without, or in quotes where it is text")
    if INTEGER.fullmatch(text):
        return int(_short(text))
    if INFINITY.fullmatch(text):
        return float(text.replace(".", ""))
    return float(_short(text)) if FRACTION.fullmatch(text) else text


def check_string(value: str) -> None:
    """TextError for what no name, path or pattern holds."""
    if len(value) > MAX_STRING:
        raise TextError(f"{value[:40]!r}... has {len(value)} characters, at most {MAX_STRING} are allowed")
    for character in value:
        if unicodedata.category(character) in NOT_PRINTED:
            raise TextError(f"{value[:200]!r} has the character {character!r}, which is not printable: take it out")


def _short(number: str) -> str:
    if len(number) > MAX_NUMBER:
        raise TextError(f"{number[:40]}... is a number of {len(number)} digits: write a smaller one")
    return number


def _read_collection(word: str) -> Any:
    try:
        return json.loads(word, object_pairs_hook=_without_duplicates, parse_int=lambda digits: int(_short(digits)))
    except json.JSONDecodeError:
        pass  # YAML writes lists and objects without quotes, too
    except RecursionError:
        raise TextError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    if re.search(r"(^|\s)#", word):
        raise TextError("a # would begin a comment: write the list or object as JSON, with its strings in quotes")
    try:
        return read_yaml(word)
    except TextError as error:
        reason = str(error).removeprefix("line 1: ")
        raise TextError(f"{shortened(repr(word))} is no list or object: {reason}; write it as JSON") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise TextError(f"the key {key!r} is given twice: remove one of them")
        values[key] = value
    return values


def _check(value: Any, path: tuple[str, ...] = (), count: int = 0) -> int:
    """The number of values so far; TextError for what is too deep, too much, not finite, or no text for people."""
    count += 1
    if len(path) > MAX_DEPTH:
        raise TextError(f"{'.'.join(path[:4])}... is nested deeper than {MAX_DEPTH} levels")
    if count > MAX_VALUES:
        raise TextError(f"it holds more than {MAX_VALUES} values, those of aliases counted each time")
    try:
        if isinstance(value, str):
            check_string(value)
        for key in value if isinstance(value, dict) else ():
            check_string(str(key))
        if isinstance(value, float) and not math.isfinite(value):
            raise TextError(f"give a finite number, not {value}")
    except TextError as error:
        raise TextError(f"{'.'.join(path)}: {error}" if path else str(error)) from None
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        count = _check(child, (*path, str(name)), count)
    return count


class _CoreLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the core schema in the place of YAML 1.1's."""

    PLAIN = "tag:yaml.org,2002:plain"  # ours, for whatever is written without quotes and tag

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return self.PLAIN if implicit[0] else self.DEFAULT_SCALAR_TAG
        return self.DEFAULT_SEQUENCE_TAG if kind is yaml.SequenceNode else self.DEFAULT_MAPPING_TAG

    def construct_plain(self, node: yaml.ScalarNode) -> Any:
        try:
            return read_scalar(node.value)
        except TextError as error:
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found: dict[str, int] = {}
        for key, _ in node.value:
            value, line = self.construct_object(key, deep=True), key.start_mark.line + 1
            if not isinstance(value, str | int) or isinstance(value, bool):
                problem = f"{str(value)[:40]!r} is no key: give text or a whole number"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            name = str(value)
            if name in found:
                problem = f"the key {name!r} is given twice, first in line {found[name]}: remove one of them"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            found[name] = line
        return yaml.constructor.BaseConstructor.construct_mapping(self, node, deep=deep)

    def refuse_tag(self, node: yaml.Node) -> Any:
        raise yaml.MarkedYAMLError(
            problem=f"the tag {node.tag!r} is not supported: give the plain value", problem_mark=node.start_mark
        )


_CoreLoader.yaml_constructors = {
    _CoreLoader.PLAIN: _CoreLoader.construct_plain,
    "tag:yaml.org,2002:str": yaml.SafeLoader.construct_yaml_str,
    "tag:yaml.org,2002:seq": yaml.SafeLoader.construct_yaml_seq,
    "tag:yaml.org,2002:map": yaml.SafeLoader.construct_yaml_map,
    None: _CoreLoader.refuse_tag,
}


def _load(text: str) -> Any:
    loader = _CoreLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
