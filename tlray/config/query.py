"""Which backbones of the catalogue are wanted: the filters of `backbones:` in a configuration and of `tlray models`.

    BackboneQuery(max_params="30M", max_size="100MB", max_latency_ms=20, shortlist=4)

Figures are numbers or text with a unit; a model of which a figure is not known does not pass a filter on it.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tlray.config.section import MOST_BATCH, MOST_ENTRIES, MOST_INPUT, Flag, Number, Section, Whole

DECIMAL = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}  # B: billions, as parameters are counted
# How pydantic's errors call the two forms of `backbones`; config.file leaves the words out of its messages.
LIST_FORM, QUERY_FORM = "[list]", "[query]"
SortKey = Literal["top1", "top5", "params", "gflops", "size", "input", "id"]


def _amount(value: Any, units: dict[str, float], example: str) -> Any:
    """A number as it is, text such as "1.5G" times its unit; ValueError names what would be right."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)(?:[eE]([+-]?\d+))?\s*([A-Za-z]*)\s*", value)
    unit = found.group(3).upper() if found else None
    if found is None or unit not in units:
        raise ValueError(f"{value!r} is not an amount such as {example}")
    return float(f"{found.group(1)}e{found.group(2) or 0}") * units[unit]


def count(value: Any) -> Any:
    """ "10M" -> 1e7"""
    return _amount(value, DECIMAL, "10M or 1.5G")


def megabytes(value: Any) -> Any:
    """ "30MB" -> 30, "1.5GB" -> 1536: MB of 2^20 bytes, in which torchvision publishes its files' sizes."""
    units = {"": 1.0, "KB": 2**-10, "MB": 1.0, "GB": 2.0**10}
    units |= {"K": units["KB"], "M": 1.0, "G": units["GB"], "KIB": units["KB"], "MIB": 1.0, "GIB": units["GB"]}
    return _amount(value, units, "30MB or 1.5GB")


def giga_operations(value: Any) -> Any:
    """ "500M" -> 0.5, "1.5G" -> 1.5, 1.5 -> 1.5: multiply-adds of one image in 10^9."""
    return _amount(value, {"": 1.0, "M": 1e-3, "G": 1.0, "T": 1e3}, "1.5 or 500M")


class Filters(Section):
    """What a set of weights must be like; all that are given must hold."""

    pattern: str = Field("", description="part of an id, or a pattern such as 'timm/*vit*'")
    max_params: Annotated[Number, BeforeValidator(count)] | None = Field(None, gt=0, description="such as 10M")
    max_size: Annotated[Number, BeforeValidator(megabytes)] | None = Field(
        None, gt=0, description="download, such as 30MB"
    )
    max_gflops: Annotated[Number, BeforeValidator(giga_operations)] | None = Field(
        None, gt=0, description="multiply-adds of one image in 10^9"
    )
    min_top1: Number | None = Field(None, ge=1, le=100, description="published ImageNet-1k accuracy in percent")
    family: str | None = Field(None, description="the library's name of the family, such as resnet, or a pattern")
    input: Whole | None = Field(None, ge=1, le=MOST_INPUT, description="input size in pixels")
    licence: str | None = Field(None, description="such as apache-2.0, or a pattern")
    trained_on: str | None = Field(None, description="a data set that training went through, such as in1k or in21k")
    library: str | None = Field(None, description="such as timm")
    pretrained: Flag = Field(True, description="only what has weights that can be downloaded")


class BackboneQuery(Filters):
    """`backbones:` as a question to the catalogue instead of a list of ids."""

    max_latency_ms: Number | None = Field(
        None, gt=0, le=10**6, description="of one batch in evaluation, measured on this machine with random weights"
    )
    batch_size: Whole = Field(1, ge=1, le=MOST_BATCH, description="images of the batch that the latency is measured on")
    sort: SortKey = Field("top1", description="best first; decides which are taken where limit leaves some out")
    limit: Whole = Field(20, ge=1, le=MOST_ENTRIES, description="backbones taken at most")
    shortlist: Whole | None = Field(
        None, ge=1, le=MOST_ENTRIES, description="backbones that the ranking leaves for the sweep"
    )
