"""Which models of the catalogue a query means, and in which order. No torch here.

list_models("torchvision/resnet*")
found = select(all_models(), Filters(max_params="10M", min_top1=75))
found = ordered(found, "top1")[:5]
"""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from tlray.catalogue.facts import ModelFacts
from tlray.catalogue.listing import all_models
from tlray.config.query import Filters
from tlray.errors import ConfigError, nearest, plain_reason

FIELDS: dict[str, str] = {
    "top1": "top1",
    "top5": "top5",
    "params": "num_params",
    "gflops": "gflops",
    "size": "size_mb",
    "input": "input_size",
    "id": "id",
}
LARGEST_FIRST = ("top1", "top5")


def list_models(pattern: str = "") -> list[ModelFacts]:
    """Facts of every entry whose id matches `pattern` (a glob over the id or the name, or a part of the id)."""
    return select(all_models(), Filters(pattern=pattern, pretrained=False))


def find(
    filters: Mapping[str, Any], *, sort: str | None = None, reverse: bool = False, limit: int | None = None
) -> list[ModelFacts]:
    """What `tlray models` shows; ConfigError for an amount or a name that there is not."""
    if sort is not None and sort not in FIELDS:
        raise ConfigError(f"sort {sort!r} is none of {', '.join(FIELDS)}")
    try:
        wanted = Filters.model_validate({name: value for name, value in filters.items() if value is not None})
    except ValidationError as error:
        (problem, *_) = error.errors()
        raise ConfigError(f"{problem['loc'][0]}: {plain_reason(problem)}") from None
    found = select(all_models(), wanted)
    if sort is not None:
        found = ordered(found, sort, reverse=reverse)
    elif reverse:
        found.reverse()
    return found[:limit]


def select(models: Sequence[ModelFacts], filters: Filters) -> list[ModelFacts]:
    """The entries that pass every filter, in their order; ConfigError for a name that none of them has."""
    for field in ("library", "family", "licence"):
        _check_name(field, getattr(filters, field), {getattr(facts, field) for facts in models})
    _check_name("trained_on", filters.trained_on, {part for facts in models for part in _data_sets(facts)})
    return [facts for facts in models if _passes(facts, filters)]


def ordered(models: Iterable[ModelFacts], key: str, *, reverse: bool = False) -> list[ModelFacts]:
    """Best accuracy first, everything else from small to large; entries without the figure last, `reverse` or not."""
    field = FIELDS[key]
    models = list(models)
    known = [facts for facts in models if getattr(facts, field) is not None]
    unknown = [facts for facts in models if getattr(facts, field) is None]
    descending = (key in LARGEST_FIRST) != reverse
    return sorted(known, key=lambda facts: getattr(facts, field), reverse=descending) + unknown


def _passes(facts: ModelFacts, filters: Filters) -> bool:
    return (
        matches(facts, filters.pattern)
        and (filters.library is None or facts.library == filters.library)
        and (filters.family is None or _is_like(facts.family, filters.family))
        and (filters.licence is None or _is_like(facts.licence, filters.licence))
        and (filters.trained_on is None or any(_is_like(part, filters.trained_on) for part in _data_sets(facts)))
        and (filters.input is None or facts.input_size == filters.input)
        and (facts.tag is not None or bool(facts.weights) or not filters.pretrained)
        and _at_most(facts.num_params, filters.max_params)
        and _at_most(facts.size_mb, filters.max_size)
        and _at_most(facts.gflops, filters.max_gflops)
        and (filters.min_top1 is None or (facts.top1 is not None and facts.top1 >= filters.min_top1))
    )


def matches(facts: ModelFacts, pattern: str) -> bool:
    """Whether a glob fits the id, with or without its library and its tag, or other text is a part of the id."""
    if not any(character in pattern for character in "*?["):
        return pattern.lower() in facts.id.lower()
    bare = facts.id.partition("/")[2]
    return any(fnmatch.fnmatchcase(form, pattern) for form in (facts.id, facts.arch, bare, facts.name))


def _at_most(value: float | None, limit: float | None) -> bool:
    return limit is None or (value is not None and value <= limit)


def _is_like(value: str | None, pattern: str) -> bool:
    return value is not None and fnmatch.fnmatchcase(value.lower(), pattern.lower())


def _data_sets(facts: ModelFacts) -> list[str]:
    return facts.trained_on.split("+") if facts.trained_on else []


def _check_name(field: str, wanted: str | None, known: set[Any]) -> None:
    """A filter whose word nothing in the catalogue has is a misspelling, not an empty answer."""
    names = sorted(name for name in known if name)
    if wanted is None or any(_is_like(name, wanted) for name in names):
        return
    near = nearest(wanted.lower(), names, count=5) or [name for name in names if wanted.lower() in name][:5]
    shown = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(names[:12])}"
    raise ConfigError(f"{field} {wanted!r}: nothing in the catalogue has it; {shown}")
