"""A folder with one sub-folder of images per class: CLASS/image.jpg, or deeper; or with splits above or below those."""

from collections.abc import Iterable, Iterator
from functools import partial

from tlray import storage
from tlray.config import DataConfig
from tlray.data.sources.entry import Entry, Load, Remarks
from tlray.data.sources.files import class_of, is_excluded, list_visible
from tlray.data.sources.layout import folder_layout
from tlray.errors import DataError
from tlray.storage.locations import Location


class FolderSource:
    """Hidden files, those right in the location, and those that data.exclude names are not looked at."""

    in_any_order = True

    def __init__(self, field: str, location: Location, data: DataConfig) -> None:
        self._field, self._location, self._data = field, location, data
        self.remarks = Remarks()
        self.description = "a folder of images"  # until its names are looked at

    def entries(self) -> Iterator[Entry]:
        layout = folder_layout(self._field, self._location.uri, self._data.exclude)
        self.description = layout.description
        num_outside, found = 0, False
        self.remarks.clear()
        for path, info in list_visible(self._field, self._location.uri, self.remarks):
            split, folder = layout.place_of(path)
            if not folder:
                num_outside += 1
            elif not is_excluded(path, self._data):
                found = True
                if split is None and layout.within_classes:
                    raise DataError(f"{self._field}: {info.uri} lies in no split folder, as others do: move it")
                yield _entry(self._field, folder, split or "", info)
        if not found:
            why = f"{num_outside} files lie right in it" if num_outside else "it is empty"
            raise DataError(
                f"{self._field}: {self._location.uri} holds no class folders with images ({why}); "
                "expected CLASS/image.jpg"
            )

    def read(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Load]]:
        for entry in entries:
            yield entry, partial(storage.read_bytes, entry.uri, entry.version or None)


def _entry(field: str, folder: str, split: str, info: storage.FileInfo) -> Entry:
    try:
        info.uri.encode()
    except UnicodeEncodeError:
        shown, folder = (text.encode("utf-8", "backslashreplace").decode() for text in (info.uri, folder))
        return Entry(field, shown, folder, split, info.size, info.version, "its name is not valid UTF-8")
    name = class_of(field, f"the folder of {info.uri}", folder)
    return Entry(field, info.uri, name, split, info.size, info.version)
