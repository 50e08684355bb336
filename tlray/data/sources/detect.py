"""Which kind of source a location is: what data.format says, or, with `auto`, what lies there."""

from itertools import islice

from tlray.config import DataConfig
from tlray.data.sources.columns import holds_bytes
from tlray.data.sources.entry import Source
from tlray.data.sources.files import container_files, is_excluded, list_visible
from tlray.data.sources.folder import FolderSource
from tlray.data.sources.parquet_file import open_whole
from tlray.data.sources.parquet_images import ParquetImagesSource
from tlray.data.sources.table import CSV, PARQUET, TableSource
from tlray.data.sources.webdataset import WebDatasetSource
from tlray.data.sources.zip_images import ZipImagesSource
from tlray.errors import DataError
from tlray.storage.locations import (
    CONTAINERS,
    Kind,
    Location,
    describe_missing,
    kind_of_file,
    locate,
    supported_endings,
)

NUM_LOOKED_AT = 1000  # names of a folder; one page of S3's listing


def open_source(field: str, uri: str, data: DataConfig) -> Source:
    """The source at `uri`, which the configuration names as `field`; DataError where there is none."""
    location = locate(uri)
    if location.kind == "folder":
        kind: Kind = _kind_of_folder(field, location, data) if data.format == "auto" else data.format
    else:
        kind = _kind_of_file(field, location, data)
    if kind == "webdataset":
        return WebDatasetSource(field, location, data)
    if kind == "csv":
        return TableSource(field, location, data, CSV)
    if kind == "parquet":
        return _parquet_source(field, location, data)
    if kind == "zip":
        return ZipImagesSource(field, location, data)
    return FolderSource(field, location, data)


def _kind_of_file(field: str, location: Location, data: DataConfig) -> Kind:
    """By its ending; DataError for what is no source, and for another one than data.format says."""
    if location.kind in ("missing", "pattern"):
        why = "" if location.kind == "missing" else "; patterns are for the images of `tlray predict`"
        raise DataError(f"{field}: {describe_missing(location.uri)}{why}")
    if location.kind not in CONTAINERS:
        raise DataError(
            f"{field}: {location.uri} is {location.words}, not labelled images: give a folder with one sub-folder a "
            f"class, or a file that ends in {supported_endings()}"
        )
    if data.format not in ("auto", location.kind):
        raise DataError(
            f"{field}: {location.uri} is {location.words} by its name, where data.format={data.format}: remove "
            "data.format, or rename it"
        )
    return location.kind


def _kind_of_folder(field: str, location: Location, data: DataConfig) -> Kind:
    """By the first names in it: a folder with loose images is a folder."""
    names = (path for path, _ in islice(list_visible(field, location.uri), NUM_LOOKED_AT))
    kinds = {kind_of_file(name) for name in names if not is_excluded(name, data)}
    if "image" in kinds:
        return "folder"
    return next((kind for kind in CONTAINERS if kind in kinds), "folder")


def _parquet_source(field: str, location: Location, data: DataConfig) -> Source:
    """Images where the first file has a column of them, else a manifest."""
    uri, _ = next(container_files(field, location, PARQUET, data))
    with open_whole(field, uri) as file:
        schema = file.schema_arrow
        names = schema.names
    image = data.columns.image
    if image in names and (data.columns.uri not in names or holds_bytes(schema.field(image).type)):
        return ParquetImagesSource(field, location, data)
    return TableSource(field, location, data, PARQUET)
