"""Packages that come with an extra of tlray: import one, or say which extra installs it.

provider = load("pytorchcv.model_provider", extra="pytorchcv")
"""

import importlib
import importlib.util
from typing import Any

from tlray.errors import BackboneError


def load(module: str, *, extra: str) -> Any:
    """The module called `module`; BackboneError with the name of the extra where its package is not installed."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise  # the package is there, and something that it needs itself is not
        raise BackboneError(
            f"the package {package} is not installed; it comes with the extra {extra}: pip install 'tlray[{extra}]'"
        ) from None


def is_installed(package: str) -> bool:
    """Whether the top-level `package` can be imported, without importing what lies in it."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # sys.modules says None: it was blocked
        return False
