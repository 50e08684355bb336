"""What a backbone is called: ids, their parts, and the mistakes one can make in them.

    resolve_id("resnet10t")            -> "timm/resnet10t"
    split_id("timm/resnet50.a1_in1k")  -> ModelId("timm", "resnet50", "a1_in1k")

An id is `library/name` or `library/name.tag`; without a tag it means the library's default weights. A bare name is
looked up in the libraries that are always there, and in those of extras where none of them has it.
"""

from dataclasses import dataclass

from tlray.catalogue.libraries import LIBRARIES, extra_of, is_installed, library
from tlray.catalogue.listing import architectures, has_architecture, tags_of
from tlray.catalogue.preprocessing import Preprocessing
from tlray.errors import BackboneError, nearest


@dataclass(frozen=True)
class ModelId:
    """An id taken apart; `tag` is None for the library's default weights."""

    library: str
    name: str
    tag: str | None

    @property
    def arch(self) -> str:
        return f"{self.library}/{self.name}"


def resolve_id(name: str) -> str:
    """`name` with its library in front; BackboneError when no model is called so, or more than one."""
    home, slash, bare = name.partition("/")
    bare = bare if slash else name
    architecture, _, tag = bare.partition(".")
    if slash:  # an unknown library, or one that is not installed, says so
        homes = [home] if has_architecture(home, architecture) else []
    else:
        homes = [one for one, names in architectures().items() if architecture in names]
        homes = [one for one in homes if extra_of(one) is None] or homes  # an extra changes what no name means
    if not homes:
        near = ", ".join(_near_misses(architecture))
        raise BackboneError(
            f"unknown backbone {name!r}; " + (f"did you mean {near}" if near else "see `tlray models`") + _missing()
        )
    if tag:
        with_tag = [one for one in homes if tag in known_tags(one, architecture)]
        if not with_tag:
            tags = ", ".join(f"{one}/{architecture}.{t}" for one in homes for t in known_tags(one, architecture))
            raise BackboneError(f"{name!r}: no weights are called {tag!r}; there are {tags or 'none'}")
        homes = with_tag
    if len(homes) > 1:
        raise BackboneError(f"{name!r} is ambiguous; write {' or '.join(f'{one}/{bare}' for one in homes)}")
    return f"{homes[0]}/{bare}"


def is_library(name: str) -> bool:
    """Whether ids may begin with `name` and a slash."""
    return name in LIBRARIES


def split_id(full_id: str) -> ModelId:
    """The parts of an id that `resolve_id` returned."""
    home, _, bare = full_id.partition("/")
    name, _, tag = bare.partition(".")
    return ModelId(home, name, tag or None)


def known_tags(home: str, name: str) -> tuple[str, ...]:
    """Tags of the weights that can be downloaded for an architecture, the library's default first."""
    return tags_of(home, name)


def default_preprocessing(full_id: str) -> Preprocessing:
    """The preprocessing of the id's weights, of the library's default weights when it names none."""
    model = split_id(full_id)
    return library(model.library).preprocessing(model.name, model.tag)


def _near_misses(architecture: str) -> list[str]:
    homes: dict[str, list[str]] = {}
    for home, names in architectures().items():
        for name in sorted(names):
            homes.setdefault(name, []).append(f"{home}/{name}")
    near = nearest(architecture.lower(), homes, count=5)
    return [full_id for name in near for full_id in homes[name]][:5]


def _missing() -> str:
    """Half a sentence about the libraries that were not searched because they are not installed."""
    absent = [f"{home} (tlray[{extra_of(home)}])" for home in LIBRARIES if not is_installed(home)]
    return f"; not installed, and not searched: {', '.join(absent)}" if absent else ""
