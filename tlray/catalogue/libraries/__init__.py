"""The libraries that backbones come from: which there are, and one of them as a module.

    library("timm").names()            # BackboneError that names the pip extra where it is not installed

A library is a module NAME.py in this folder with the functions of `Library`. It imports torch and its package inside
its functions, so that importing it costs nothing.
"""

from importlib import import_module, metadata
from typing import Any, Protocol, cast

from tlray.catalogue.preprocessing import Preprocessing
from tlray.errors import BackboneError

# What stands before the slash of an id -> the distribution whose code and metadata it is; None: tlray's own.
# The order decides what a listing shows first. Adding a library is a line here and its module.
LIBRARIES: dict[str, str | None] = {
    "torchvision": "torchvision",
    "timm": "timm",
    "tlray": None,
    "pytorchcv": "pytorchcv",
    "open_clip": "open_clip_torch",
    "ultralytics": "ultralytics",
}


class Library(Protocol):
    """What every module of this folder has."""

    LIBRARY: str
    EXTRA: str | None  # pip extra that installs it; None: always there

    def names(self) -> tuple[str, ...]:
        """Architectures, as the library calls them, sorted."""

    def tags(self, name: str) -> tuple[str, ...]:
        """Weights of an architecture that can be downloaded, the default first."""

    def preprocessing(self, name: str, tag: str | None) -> Preprocessing:
        """How images are prepared for these weights, or for the library's default ones."""

    def facts(self, name: str, tag: str | None) -> dict[str, Any]:
        """The fields of `catalogue.facts.ModelFacts` that the library knows."""

    def construct(
        self, name: str, tag: str | None, source: str, size: int, options: dict[str, Any], num_classes: int
    ) -> Any:
        """The model; `source` is pretrained, none, or file (whose weights are loaded afterwards)."""

    def labels(self, name: str, tag: str | None) -> tuple[str, ...]:
        """The class names of the weights, in the order of the logits."""


def library(name: str) -> Library:
    """The module of a library; BackboneError where there is no such library, or where it is not installed."""
    if name not in LIBRARIES:
        raise BackboneError(f"unknown library {name!r}; backbones come from {_listed(list(LIBRARIES))}")
    module = cast(Library, import_module(f"tlray.catalogue.libraries.{name}"))
    if not is_installed(name):
        extra = module.EXTRA or name
        raise BackboneError(f"{name} is not installed: pip install 'tlray[{extra}]' brings it")
    return module


def is_installed(name: str) -> bool:
    return version(name) is not None


def installed() -> tuple[str, ...]:
    """The libraries that can be used here, in the order of `LIBRARIES`."""
    return tuple(name for name in LIBRARIES if is_installed(name))


def extra_of(name: str) -> str | None:
    """The pip extra that installs a library, also where it is not installed."""
    return cast(Library, import_module(f"tlray.catalogue.libraries.{name}")).EXTRA


def version(name: str) -> str | None:
    """The installed version of a library's distribution, "tlray" for tlray's own, None where it is not installed."""
    distribution = LIBRARIES[name]
    if distribution is None:
        return "tlray"
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
