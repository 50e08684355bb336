"""The configuration as text: YAML and command-line overrides -> RunConfig, every mistake named.

config = parse_config(Path("run.yaml").read_text(), ["training.epochs=5"], source="run.yaml")
"""

import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tlray.config import RunConfig
from tlray.config.overrides import apply_override
from tlray.config.query import QUERY_FORM
from tlray.config.text import TextError, read_scalar, read_yaml
from tlray.errors import ConfigError, plain_reason, shortened, unknown_key

MAX_PROBLEMS = 20  # told at once
ALTERNATIVE = re.compile(r"constrained-\w+|literal\[.*\]", re.DOTALL)


def parse_config(text: str, overrides: Sequence[str] = (), *, source: str = "config") -> RunConfig:
    """YAML text and `dotted.key=value` overrides -> RunConfig; raises ConfigError with every problem, one a line."""
    try:
        document = read_yaml(text)
    except TextError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{source} holds no configuration: expected `key: value` lines")
    for override in overrides:
        apply_override(document, override)
    try:
        return RunConfig.model_validate(document)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except ValidationError as error:
        lines = [f"{_dotted(e['loc'])}{_explain(e)}" for e in error.errors() if not _is_consequence(e, error.errors())]
        raise ConfigError(f"{source}: " + "; ".join(_first(list(dict.fromkeys(lines))))) from None


def dump_config(config: RunConfig) -> str:
    """The configuration as YAML with every default written out; `parse_config` reads it back unchanged."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that either version of YAML would read as something else, and repeats what occurs twice."""

    def represent_str(self, value: str) -> yaml.ScalarNode:
        try:
            plain = isinstance(read_scalar(value), str)
        except TextError:
            plain = False
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else "'")

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(str, _Dumper.represent_str)


def _first(problems: list[str]) -> list[str]:
    """As many as a person reads."""
    left = len(problems) - MAX_PROBLEMS
    return problems if left <= 0 else [*problems[:MAX_PROBLEMS], f"and {left} more"]


def _is_consequence(error: Any, errors: Sequence[Any]) -> bool:
    """Whether pydantic calls a list too short only because one of its items was refused, which another error says."""
    depth = len(error["loc"])
    return error["type"] == "too_short" and any(
        len(other["loc"]) > depth and other["loc"][:depth] == error["loc"] for other in errors
    )


def _dotted(location: tuple[int | str, ...]) -> str:
    """Without the names of alternatives, which stand in brackets, and those that pydantic gives."""
    if location and ALTERNATIVE.fullmatch(str(location[-1])):
        location = location[:-1]
    return ".".join(shortened(str(part)) for part in location if not str(part).startswith("["))


def _explain(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        *parents, key = error["loc"]
        return f": {unknown_key(str(key), _valid_keys(RunConfig, parents))}"
    reason = plain_reason(error)
    return f": {reason}" if error["loc"] else reason


def _valid_keys(section: type[BaseModel], location: list[int | str]) -> list[str]:
    """Field names of the section at `location` below `section` (list indices and mapping keys are stepped over)."""
    for part, following in zip_longest(location, location[1:]):
        field = section.model_fields.get(str(part))
        if field is not None:
            sections = _sections_in(field.annotation) or [section]
            section = sections[-1] if following == QUERY_FORM else sections[0]
    return list(section.model_fields)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections_in(argument)]
