"""A folder with one sub-folder of images per class: CLASS/image.jpg, or deeper."""

from collections.abc import Iterable, Iterator
from functools import partial

from tlray import storage
from tlray.config import DataConfig
from tlray.data.sources.entry import Entry, Load, Remarks
from tlray.data.sources.files import is_excluded, list_visible
from tlray.errors import DataError


class FolderSource:
    """Hidden files, those right in the location, and those that data.exclude names are not looked at."""

    description = "a folder of images, one sub-folder a class"

    def __init__(self, field: str, location: str, data: DataConfig) -> None:
        self._field, self._location, self._data = field, location, data
        self.remarks = Remarks()

    def entries(self) -> Iterator[Entry]:
        num_outside, found = 0, False
        self.remarks.clear()
        for path, info in list_visible(self._field, self._location, self.remarks):
            class_name, slash, _ = path.partition("/")
            if not slash:
                num_outside += 1
            elif not is_excluded(path, self._data):
                found = True
                yield _entry(self._field, class_name, info)
        if not found:
            why = f"{num_outside} files lie right in it" if num_outside else "it is empty"
            raise DataError(
                f"{self._field}: {self._location} holds no class folders with images ({why}); expected CLASS/image.jpg"
            )

    def read(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Load]]:
        for entry in entries:
            yield entry, partial(storage.read_bytes, entry.uri, entry.version or None)


def _entry(field: str, class_name: str, info: storage.FileInfo) -> Entry:
    try:
        info.uri.encode()
    except UnicodeEncodeError:
        shown, class_name = (text.encode("utf-8", "backslashreplace").decode() for text in (info.uri, class_name))
        return Entry(field, shown, class_name, "", info.size, info.version, "its name is not valid UTF-8")
    return Entry(field, info.uri, class_name, "", info.size, info.version)
