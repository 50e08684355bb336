"""What every source of images says of each of them, before it is read."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

Load = Callable[[], bytes]  # the bytes of one image; StorageError or BadImageError where there are none


@dataclass(frozen=True, slots=True)
class Entry:
    """One image by name, or one thing that should have been an image and whose `reason` says why it is none."""

    field: str  # data.train, data.val, data.test: where the configuration names its location
    uri: str  # of a member of a container: FILE.tar#OFFSET+SIZE, FILE.parquet#ROW
    class_name: str
    split: str = ""  # train, val, test; "" where the source does not say
    num_bytes: int = -1  # -1 where that is known only after reading
    version: str = ""  # FileInfo.version, of the container where there is one; "" where nothing was listed
    reason: str = ""


class Remarks:
    """What a person should know of a location and is no error, counted while its entries are gone through."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, text: str, example: str) -> None:
        """One more thing that `text` is true of, said behind its number: `files of the system are skipped`."""
        self._counts[text] += 1
        self._examples.setdefault(text, example)

    def clear(self) -> None:
        self._counts.clear()
        self._examples.clear()

    def lines(self) -> tuple[str, ...]:
        return tuple(f"{count} {text}, for example {self._examples[text]}" for text, count in self._counts.items())


class Source(Protocol):
    """A location's images. Containers are opened once for all of their members that are asked for."""

    description: str  # what it was found to be, for people

    @property
    def in_any_order(self) -> bool:
        """Whether a single image can be read for about what it costs among all."""
        ...

    remarks: Remarks  # whole once `entries` has been gone through

    def entries(self) -> Iterator[Entry]:
        """All of them, sorted; DataError for a location without any, or with something that cannot be meant."""
        ...

    def read(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Load]]:
        """Some of `entries()`, in that order. Loose files are read when, and in the thread where, Load is called."""
        ...
