"""Facts of everything in the catalogue, put together once and kept on disk.

    for facts in all_models(): ...

What the libraries say needs their import, which takes seconds; the result is kept in ~/.cache/tlray/catalogue (or below
XDG_CACHE_HOME) under a name made of the libraries' versions and of the contents of everything it is computed from, so
that a file there is never out of date. A damaged one is made again.
"""

import functools
import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tlray.catalogue.data import accuracy, computed, file_contents
from tlray.catalogue.facts import ModelFacts
from tlray.catalogue.libraries import LIBRARIES, extra_of, is_installed, library, version
from tlray.catalogue.licences import binds
from tlray.storage import home_cache


def all_models() -> tuple[ModelFacts, ...]:
    """One entry for each set of weights, and one for each architecture without any; libraries in their order."""
    return _kept(_path())


def has_architecture(home: str, name: str) -> bool:
    """Whether a library has it; BackboneError where there is no such library, or where it is not installed."""
    module = library(home)
    listed = _listed(_path(), home)
    return name in (module.names() if listed is None else listed)


def tags_of(home: str, name: str) -> tuple[str, ...]:
    """Weights of an architecture, the library's default first; none of one that the library has not."""
    module = library(home)
    listed = _listed(_path(), home)
    return module.tags(name) if listed is None else listed.get(name, ())


def architectures() -> dict[str, frozenset[str]]:
    """Names of the architectures of each installed library."""
    names: dict[str, set[str]] = {home: set() for home in LIBRARIES if is_installed(home)}
    for facts in all_models():
        if facts.library in names:
            names[facts.library].add(facts.name)
    return {home: frozenset(found) for home, found in names.items()}


def facts_of(full_id: str) -> ModelFacts:
    """Facts of one id, straight from its library; without a tag those of the default weights."""
    home, _, bare = full_id.partition("/")
    name, _, tag = bare.partition(".")
    return _entry(home, name, tag or next(iter(library(home).tags(name)), None))


@functools.cache
def _listed(path: Path, home: str) -> dict[str, tuple[str, ...]] | None:
    """Tags by architecture, from the file on disk, which takes no import of the library; None where there is none."""
    if not path.exists():
        return None
    return {facts.name: facts.weights for facts in _kept(path) if facts.library == home}


def _path() -> Path:
    return home_cache.folder("catalogue") / f"facts-{_fingerprint()}.json"


@functools.cache
def _kept(path: Path) -> tuple[ModelFacts, ...]:
    with suppress(TypeError, KeyError):  # another file of that name
        if fields := home_cache.read(path):
            return tuple(ModelFacts(**{**one, "weights": tuple(one["weights"])}) for one in fields)
    found = tuple(_assembled())
    home_cache.write(path, [facts.to_dict() for facts in found])
    return found


@functools.cache
def _fingerprint() -> str:
    digest = hashlib.sha256(json.dumps({home: version(home) for home in LIBRARIES}).encode())
    here = Path(__file__).parent
    for file in sorted([*here.glob("*.py"), *here.glob("*.json"), *(here.parent / "libraries").glob("*.py")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _assembled() -> Iterator[ModelFacts]:
    for home in LIBRARIES:
        if not is_installed(home):
            for full_id, known in file_contents()["optional"].items():
                if full_id.startswith(f"{home}/"):
                    yield _of_absent_library(home, full_id, known)
            continue
        module = library(home)
        for name in module.names():
            for tag in module.tags(name) or (None,):
                yield _entry(home, name, tag)


def _entry(home: str, name: str, tag: str | None) -> ModelFacts:
    module = library(home)
    full_id = f"{home}/{name}.{tag}" if tag else f"{home}/{name}"
    known = {key: value for key, value in module.facts(name, tag).items() if value is not None}
    fields = computed(f"{home}/{name}", known.get("input_size"), known.get("num_classes"))
    if "size_mb" in known:
        fields["size_estimated"] = False
    fields |= accuracy(full_id, known.get("input_size"))
    notes = [str(one) for one in (known.pop("note", None), fields.pop("note", None)) if one]
    fields |= known
    return ModelFacts(
        **{
            **fields,
            "id": full_id,
            "library": home,
            "name": name,
            "tag": tag,
            "weights": module.tags(name),
            "licence_binds": binds(fields.get("licence")),
            "extra": module.EXTRA,
            "note": "; ".join(notes) or None,
        }
    )


def _of_absent_library(home: str, full_id: str, known: dict[str, Any]) -> ModelFacts:
    """What the data file keeps of a library that is not installed here; it says which extra brings it."""
    extra = extra_of(home)
    note = f"not installed: pip install 'tlray[{extra}]'"
    notes = "; ".join(filter(None, (known.get("note"), note)))
    return ModelFacts(**{**known, "id": full_id, "weights": tuple(known["weights"]), "extra": extra, "note": notes})
