"""What the first folders below a location mean: classes, or splits with the classes in them.

    layout = folder_layout("data.train", "s3://bucket/set", data.exclude)
    split, class_folder = layout.place_of("val/ant/1.jpg")             # ("val", "ant")

    splits = file_splits("data.train", "/set", ["/set/train-0.tar", "/set/test-0.tar"])    # {uri: split}

People keep a data set either as CLASS/image.jpg or as train/CLASS/image.jpg beside val/ and test/; some as
CLASS/train/image.jpg. Names alone do not tell, as `train` is a class among cars and buses: the folders in them do. What
fits neither reading is an error that names both, since a guess would train on what is to be tested on.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tlray import storage
from tlray.data.class_names import ClassNameError, class_name
from tlray.data.images import Split
from tlray.data.litter import is_litter
from tlray.data.sources.files import fits_any, list_visible
from tlray.data.split_names import split_named, split_of_file
from tlray.errors import DataError
from tlray.storage.locations import IMAGE_ENDINGS

NUM_NAMED = 5


@dataclass(frozen=True)
class Layout:
    """How a path below a location is to be read."""

    description: str
    splits: Mapping[str, Split] = field(default_factory=dict)  # of the folders that are splits; empty: there are none
    within_classes: bool = False  # CLASS/SPLIT/image.jpg instead of SPLIT/CLASS/image.jpg

    def place_of(self, path: str) -> tuple[Split | None, str]:
        """(split, class folder) of a file's path; None where no folder says a split, "" where none is a class."""
        first, second = [*path.split("/")[:-1], "", ""][:2]
        if not self.splits:
            return None, first
        return (split_named(second), first) if self.within_classes else (self.splits.get(first), second)


@dataclass
class _Folder:
    """What lies in one folder of the first level."""

    folders: set[str] = field(default_factory=set)  # in it
    has_images: bool = False  # at any depth
    has_loose_images: bool = False  # right in it


def folder_layout(field: str, location: str, exclude: Sequence[str] = ()) -> Layout:
    """The layout of class folders below a location; DataError for what can be read in two ways."""
    try:
        names = [name for name in storage.list_folders(location) if not is_litter(name)]
    except storage.NotFoundError:
        raise DataError(f"{field}: {location} does not exist") from None
    if not any(map(split_named, names)):
        inner = storage.list_folders(storage.join(location, names[0])) if names else []
        return _of_classes(inner)
    return _of_survey(field, location, _survey((path for path, _ in list_visible(field, location)), exclude))


def layout_of_paths(field: str, location: str, paths: Sequence[str], exclude: Sequence[str] = ()) -> Layout:
    """The same for the names in a container."""
    folders = [path.split("/")[:-1] for path in paths]
    names = sorted({some[0] for some in folders if some})
    if not any(map(split_named, names)):
        return _of_classes(sorted({some[1] for some in folders if len(some) > 1 and some[0] == names[0]}))
    return _of_survey(field, location, _survey(paths, exclude))


def _of_survey(field: str, location: str, found: dict[str, _Folder]) -> Layout:
    named = {name: split for name in sorted(found) if (split := split_named(name)) is not None}
    others = [name for name in sorted(found) if name not in named and found[name].has_images]
    nested = {name: split for name, split in named.items() if found[name].folders and not found[name].has_loose_images}
    if others:
        _refuse_mixture(field, location, nested, others, found)
        why = f"{_listed(named)} too, beside {_listed(others)}"
        return Layout(f"a folder of images, one sub-folder a class; {why}")
    if not nested:
        taken = f"{_listed(named)} too, as images lie right in it, in no class folder" if named else ""
        return Layout(f"a folder of images, one sub-folder a class{'; ' if taken else ''}{taken}")
    loose = [name for name in named if name not in nested]
    if loose:
        raise DataError(
            f"{field}: {location} has the splits {_listed(nested)} with class folders in them, and in {_listed(loose)} "
            f"images in no class folder: leave them out with data.exclude=['{loose[0]}/*'], or move them"
        )
    _check_classes(field, location, nested, found)
    understood = ", ".join(f"{name}/ is {split}" for name, split in nested.items())
    return Layout(f"a folder of splits, in each one sub-folder a class: {understood}", nested)


def file_splits(field: str, location: str, uris: Sequence[str]) -> dict[str, Split]:
    """The splits that containers' and tables' own names below a location say; empty where they tell of one or none.

    DataError where some say one and others do not, or another one than `field`.
    """
    named = {uri: split_of_file(uri.removeprefix(location).lstrip("/")) for uri in uris if uri != location}
    known = {uri: split for uri, split in named.items() if split is not None}
    if len(set(known.values())) < 2:
        return {}
    some = next(iter(known))
    silent = next((uri for uri in uris if uri not in known), None)
    if silent is not None:
        raise DataError(
            f"{field}: the names of some files say their split ({some}), that of {silent} does not: "
            "leave it out with data.exclude, or rename it"
        )
    own = field.removeprefix("data.")
    other = next((uri for uri, split in known.items() if split != own), None)
    if own not in ("train", "data") and other is not None:
        raise DataError(f"{field}: {other} is {known[other]} by its name, not {own}: name the files of {own} alone")
    return known


def _of_classes(inner: list[str]) -> Layout:
    """Where no name of the first level is a split's: whether the classes' own folders are."""
    inner = [name for name in inner if not is_litter(name)]
    splits = {name: split for name in inner if (split := split_named(name)) is not None}
    if len(set(splits.values())) > 1 and len(splits) == len(inner):
        return Layout(
            f"a folder of classes, in each one sub-folder a split: {_listed(inner)}", splits, within_classes=True
        )
    return Layout("a folder of images, one sub-folder a class")


def _survey(paths: Iterable[str], exclude: Sequence[str]) -> dict[str, _Folder]:
    found: dict[str, _Folder] = defaultdict(_Folder)
    for path in paths:
        parts = path.split("/")
        if len(parts) == 1 or fits_any(path, exclude):
            continue
        folder = found[parts[0]]
        is_image = parts[-1].rpartition(".")[2].lower() in IMAGE_ENDINGS
        folder.has_images |= is_image
        if len(parts) > 2:
            folder.folders.add(_spelling(parts[1]))
        else:
            folder.has_loose_images |= is_image
    return found


def _spelling(name: str) -> str:
    """Two spellings of one class are the same folder here; what is no name of a class is said later."""
    try:
        return class_name(name)
    except ClassNameError:
        return name


def _refuse_mixture(
    field: str, location: str, nested: Mapping[str, Split], others: list[str], found: Mapping[str, _Folder]
) -> None:
    """Folders named like splits, with the same classes in them, beside others: neither reading is safe."""
    shared = _shared(nested, found)
    if len(set(nested.values())) > 1 and shared:
        raise DataError(
            f"{field}: {location} has {_listed(nested)} with the same folders in them (such as {min(shared)}), which "
            f"are splits, and beside them {_listed(others)}: leave that out with data.exclude=['{others[0]}/*'], "
            "or, if all are classes, give the others other names"
        )


def _check_classes(field: str, location: str, nested: Mapping[str, Split], found: Mapping[str, _Folder]) -> None:
    own = field.removeprefix("data.")
    if field == "data":  # of `evaluate`, for which any split will do
        return
    if own != "train" and set(nested.values()) != {own}:
        wrong = next(name for name, split in nested.items() if split != own)
        there = next((name for name, split in nested.items() if split == own), None)
        remedy = f"name {field}={location}/{there}" if there else f"name the folder of {own} itself"
        raise DataError(f"{field}: {location} has a folder {wrong!r}, which is not {own}: {remedy}")
    if own == "train" and "train" not in nested.values():
        raise DataError(
            f"{field}: {location} has the splits {_listed(nested)} and none to train on: add a folder train/, or name "
            f"the folder of classes itself, {location}/{next(iter(nested))}"
        )
    if len(set(nested.values())) > 1 and not _shared(nested, found):
        raise DataError(
            f"{field}: {location} has {_listed(nested)}, which are splits or classes: as splits they have no class "
            "folder in common; put the same class folders in each, or list the images in a CSV file (uri,label)"
        )


def _shared(nested: Mapping[str, Split], found: Mapping[str, _Folder]) -> set[str]:
    """Folders that lie in two or more splits, train among them where there is one."""
    by_split: dict[Split, set[str]] = defaultdict(set)
    for name, split in nested.items():
        by_split[split] |= found[name].folders
    sets = list(by_split.values())
    return {name for some in sets for name in some if sum(name in other for other in sets) > 1}


def _listed(names: Iterable[str]) -> str:
    some = list(names)
    more = f" and {len(some) - NUM_NAMED} more" if len(some) > NUM_NAMED else ""
    return ", ".join(f"{name}/" for name in some[:NUM_NAMED]) + more
