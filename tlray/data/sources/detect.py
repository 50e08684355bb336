"""Which kind of source a location is: what data.format says, or, with `auto`, what lies there."""

from itertools import islice

from tlray import storage
from tlray.config import DataConfig
from tlray.data.sources.columns import holds_bytes
from tlray.data.sources.entry import Source
from tlray.data.sources.files import IMAGE_ENDINGS, container_files, is_excluded, list_visible
from tlray.data.sources.folder import FolderSource
from tlray.data.sources.parquet_file import open_whole
from tlray.data.sources.parquet_images import ParquetImagesSource
from tlray.data.sources.table import CSV, PARQUET, TableSource
from tlray.data.sources.webdataset import TAR, WebDatasetSource

NUM_LOOKED_AT = 1000  # names of a folder; one page of S3's listing
ENDINGS = {"webdataset": TAR, "parquet": PARQUET, "csv": CSV}


def open_source(field: str, uri: str, data: DataConfig) -> Source:
    """The source at `uri`, which the configuration names as `field`; DataError where there is nothing."""
    location = storage.absolute(uri)
    kind = _kind_of(field, location, data) if data.format == "auto" else data.format
    if kind == "webdataset":
        return WebDatasetSource(field, location, data)
    if kind == "csv":
        return TableSource(field, location, data, CSV)
    if kind == "parquet":
        return _parquet_source(field, location, data)
    return FolderSource(field, location, data)


def _kind_of(field: str, location: str, data: DataConfig) -> str:
    """By the location's own ending, else by the first names in it: a folder with loose images is a folder."""
    for kind, endings in ENDINGS.items():
        if location.lower().endswith(endings):
            return kind
    names = [
        path.lower() for path, _ in islice(list_visible(field, location), NUM_LOOKED_AT) if not is_excluded(path, data)
    ]
    if any(name.endswith(tuple(f".{ending}" for ending in IMAGE_ENDINGS)) for name in names):
        return "folder"
    return next((kind for kind, endings in ENDINGS.items() if any(n.endswith(endings) for n in names)), "folder")


def _parquet_source(field: str, location: str, data: DataConfig) -> Source:
    """Images where the first file has a column of them, else a manifest."""
    uri, _ = next(container_files(field, location, PARQUET, data))
    with open_whole(field, uri) as file:
        schema = file.schema_arrow
    columns = data.columns
    if columns.image in schema.names and (
        columns.uri not in schema.names or holds_bytes(schema.field(columns.image).type)
    ):
        return ParquetImagesSource(field, location, data)
    return TableSource(field, location, data, PARQUET)
