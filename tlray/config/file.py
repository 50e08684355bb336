"""The configuration as text: YAML and command-line overrides -> RunConfig, every mistake named.

config = parse_config(Path("run.yaml").read_text(), ["training.epochs=5"], source="run.yaml")
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tlray.config import RunConfig
from tlray.config.query import QUERY_FORM
from tlray.errors import ConfigError, plain_reason, unknown_key


def parse_config(text: str, overrides: Sequence[str] = (), *, source: str = "config") -> RunConfig:
    """YAML text and `dotted.key=value` overrides -> RunConfig; raises ConfigError with every problem, one a line."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{source} holds no configuration: expected `key: value` lines")
    for override in overrides:
        _apply_override(document, override)
    try:
        return RunConfig.model_validate(document)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except ValidationError as error:
        lines = [f"{_dotted(e['loc'])}{_explain(e)}" for e in error.errors() if not _is_consequence(e, error.errors())]
        raise ConfigError(f"{source}: " + "; ".join(dict.fromkeys(lines))) from None


def dump_config(config: RunConfig) -> str:
    """The configuration as YAML with every default written out; `parse_config` reads it back unchanged."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply_override(document: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"{override!r} is not of the form key=value (for example training.epochs=5)")
    node: Any = document
    *parents, last = path.split(".")
    for part in parents:
        node = node[_index(path, part, node)] if isinstance(node, list) else node.setdefault(part, {})
        if not isinstance(node, (dict, list)):
            raise ConfigError(f"{path}: {part} is a single value and has no key below it")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"{path}: {value!r} is not a YAML value") from None
    if isinstance(node, list):
        node[_index(path, last, node)] = parsed
    else:
        node[last] = parsed


def _index(path: str, part: str, values: list[Any]) -> int:
    if not part.isdigit() or int(part) >= len(values):
        raise ConfigError(f"{path}: {part!r} is not an index of a list of {len(values)}")
    return int(part)


def _is_consequence(error: Any, errors: Sequence[Any]) -> bool:
    """Whether pydantic calls a list too short only because one of its items was refused, which another error says."""
    depth = len(error["loc"])
    return error["type"] == "too_short" and any(
        len(other["loc"]) > depth and other["loc"][:depth] == error["loc"] for other in errors
    )


def _dotted(location: tuple[int | str, ...]) -> str:
    """Without the names of alternatives, which stand in brackets."""
    return ".".join(str(part) for part in location if not str(part).startswith("["))


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
