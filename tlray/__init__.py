"""tlray: find, prove and export the pre-trained backbone that works best on your images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlray.export import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`tlray.load`, imported when it is asked for: it needs torch, and `import tlray` does not."""
    if name == "load":
        from tlray.export import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
