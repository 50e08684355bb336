"""Labelled images to score a model on, from any source that a run trains on.

labelled = open_labelled("labelled/", model.classes)
for (entry, load), label in zip(labelled.read(), labelled.labels): ...
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tlray.config import DataConfig
from tlray.data.class_names import matched
from tlray.data.sources import Entry, Load, Source, open_source
from tlray.errors import DataError, nearest

FIELD = "data"  # what messages call the location; of its splits any will do
SCORED_FIRST = ("test", "val", "train")  # of the splits in a location


@dataclass(frozen=True)
class LabelledImages:
    """Images with their labels, in order; and those that are none, with the reason."""

    source: Source
    entries: tuple[Entry, ...]
    labels: tuple[int, ...]  # of each entry: a place among the classes
    bad: tuple[Entry, ...]
    notes: tuple[str, ...]  # how the location was understood

    def read(self) -> Iterator[tuple[Entry, Load]]:
        return self.source.read(self.entries)


def open_labelled(location: str, classes: Sequence[str]) -> LabelledImages:
    """The images at a location; of several splits in it those of test, else val, else train.

    DataError: nothing there, or a class that is none of `classes`, in whatever spelling.
    """
    source = open_source(FIELD, location, DataConfig(train=location))
    entries = list(source.entries())
    there = {entry.split for entry in entries}
    chosen = next((split for split in SCORED_FIRST if split in there), None)
    if chosen is not None:
        entries = [entry for entry in entries if entry.split == chosen]
    good = [entry for entry in entries if not entry.reason]
    places = {name: _place(location, name, classes) for name in dict.fromkeys(entry.class_name for entry in good)}
    understood = () if chosen is None else (f"{location} is {source.description}; {chosen} is scored",)
    return LabelledImages(
        source=source,
        entries=tuple(good),
        labels=tuple(places[entry.class_name] for entry in good),
        bad=tuple(entry for entry in entries if entry.reason),
        notes=(*understood, *(f"{location}: {line}" for line in source.remarks.lines())),
    )


def _place(location: str, name: str, classes: Sequence[str]) -> int:
    found = matched(name, classes)
    if found is None:
        near = "".join(f"; did you mean {other!r}?" for other in nearest(name, classes))
        raise DataError(f"{location}: the class {name!r} is none of the model's {len(classes)} classes{near}")
    return classes.index(found)
