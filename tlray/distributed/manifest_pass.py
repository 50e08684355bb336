"""The manifest of a data set without reading again what earlier runs have read.

manifest = make_manifest_on_cluster(config, run_uri, progress)
"""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from tlray import parquet, storage
from tlray.config import RunConfig
from tlray.data.inspect import OK
from tlray.data.manifest import Manifest, make_manifest
from tlray.data.prepared import prepare_manifest, with_preparation
from tlray.distributed.prepare_pass import prepare_on_cluster
from tlray.prepare import with_absolute_locations

INSPECTED = ("uri", "version", "content_id", "bytes", "width", "height", "status")


def make_manifest_on_cluster(
    config: RunConfig, earlier_run: str | None, progress: Callable[[int, int], None]
) -> Manifest:
    """New images are read by the cluster where images are kept in shards, else here; DataError as `make_manifest`.

    `earlier_run`: a run folder whose manifest says what files of the same version hold; it may be gone.
    """
    data = with_preparation(with_absolute_locations(config).data)
    if data.prepare == "always":
        prepare_on_cluster(config, progress)
        return prepare_manifest(data)
    return make_manifest(data, known=_inspected(earlier_run))


def _inspected(run_uri: str | None) -> pa.Table | None:
    """What a run's manifest knows of files with a version, as `make_manifest` takes it."""
    uri = storage.join(run_uri, "manifest.parquet") if run_uri is not None else ""
    if not uri or not storage.exists(uri):
        return None
    with storage.open_file(uri) as stream, parquet.open_file(stream) as file:
        table = parquet.read(file, INSPECTED)
    table = table.filter(pc.and_(pc.equal(table["status"], OK), pc.not_equal(table["version"], "")))
    return table.rename_columns(["num_bytes" if name == "bytes" else name for name in table.column_names])
