"""The manifest of a data set without reading again what earlier runs have read.

manifest = make_manifest_on_cluster(config, run_uri, progress)
"""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from tlray.config import RunConfig
from tlray.data.inspect import OK
from tlray.data.manifest import Manifest, make_manifest
from tlray.data.prepared import prepare_manifest, with_preparation
from tlray.distributed.prepare_pass import prepare_on_cluster
from tlray.errors import StorageError
from tlray.runs.folder import MANIFEST, open_verified
from tlray.runs.prepare import with_absolute_locations
from tlray.storage import parquet

INSPECTED = ("uri", "version", "content_id", "bytes", "width", "height", "status")


def make_manifest_on_cluster(
    config: RunConfig, earlier_run: str | None, progress: Callable[[int, int], None]
) -> Manifest:
    """New images are read by the cluster where images are kept in shards, else here; DataError as `make_manifest`.

    `earlier_run`: a run folder whose manifest says what files of the same version hold; it may be gone or damaged.
    """
    data = with_preparation(with_absolute_locations(config).data)
    if data.prepare == "always":
        prepare_on_cluster(config, progress)
        return prepare_manifest(data)
    return make_manifest(data, known=_inspected(earlier_run))


def _inspected(run_uri: str | None) -> pa.Table | None:
    """What a run's manifest knows of files with a version, as `make_manifest` takes it."""
    if run_uri is None:
        return None
    try:
        with open_verified(run_uri, MANIFEST) as path, path.open("rb") as stream, parquet.open_file(stream) as file:
            table = parquet.read(file, INSPECTED)
    except StorageError:  # every image is read again
        return None
    table = table.filter(pc.and_(pc.equal(table["status"], OK), pc.not_equal(table["version"], "")))
    return table.rename_columns(["num_bytes" if name == "bytes" else name for name in table.column_names])
