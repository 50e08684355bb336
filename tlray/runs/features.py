"""Feature vectors for other tools: what each backbone computes of every image, as one Parquet file a backbone.

    config = features_config(config)                       # one linear probe a backbone, whose features are kept
    uris = write_features(run, store)                      # after the activation pass

Columns: uri, content_id, split, class, label, features (float32, fixed length). A cut of several values is flattened
and joined in the order of the forward.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tlray import storage
from tlray.activations.keys import ActivationKey
from tlray.activations.planned import ActivationSource
from tlray.activations.store import ActivationStore
from tlray.config import RunConfig, StrategyConfig
from tlray.errors import BackboneError
from tlray.process.scratch import temporary_folder
from tlray.runs.prepare import Run

ROWS_AT_ONCE = 1024


def features_config(config: RunConfig) -> RunConfig:
    """The configuration with a linear probe without augmentation for each backbone as its only trials."""
    recipe = config.training.model_copy(update={"augmentation": "none", "freeze_bn": True, "precision": "float32"})
    return config.model_copy(
        update={
            "strategies": (StrategyConfig(strategy="linear_probe"),),
            "training": recipe,
            "search_space": {},
            "warm_start": None,
            "sweep": config.sweep.model_copy(update={"num_samples": 1}),
            "activations": config.activations.model_copy(update={"materialise": "always"}),
        }
    )


def write_features(run: Run, store: ActivationStore) -> tuple[str, ...]:
    """Write features/<backbone>.parquet to the run folder for each backbone -> their locations."""
    written: list[str] = []
    for source in run.plan.activations:
        if not source.materialise:
            raise BackboneError(f"{source.backbone.id}: no features: {source.reason}")
        name = re.sub(r"[^A-Za-z0-9_.]+", "-", source.backbone.id.rpartition("/")[2])
        with temporary_folder("features") as folder:
            path = folder / f"{len(written):02d}-{name}.parquet"
            _write_parquet(run, source, store, path)
            storage.upload_folder(folder, storage.join(run.uri, "features"))
        written.append(storage.join(run.uri, "features", path.name))
    return tuple(written)


def _write_parquet(run: Run, source: ActivationSource, store: ActivationStore, path: Path) -> None:
    writer: pq.ParquetWriter | None = None
    for table in _tables(run, source, store):
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None, "a manifest has images"
    writer.close()


def _tables(run: Run, source: ActivationSource, store: ActivationStore) -> Iterator[pa.Table]:
    images = [image for image in run.manifest.images if image.split != "test" or source.with_test]
    reader = store.reader(ActivationKey(**source.keys[0]), [image.content_id for image in images])
    metadata = {b"backbone": source.backbone.id.encode(), b"weights": source.backbone.weights.encode()}
    for start in range(0, len(images), ROWS_AT_ONCE):
        some = images[start : start + ROWS_AT_ONCE]
        values = reader.read(np.arange(start, start + len(some)))
        rows = np.concatenate([value.float().flatten(1).numpy() for value in values], axis=1)
        features = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
        table = pa.table(
            {
                "uri": [image.uri for image in some],
                "content_id": [image.content_id for image in some],
                "split": [image.split for image in some],
                "class": [run.manifest.classes[image.label] for image in some],
                "label": pa.array([image.label for image in some], pa.int32()),
                "features": features,
            }
        )
        yield table.replace_schema_metadata(metadata)
