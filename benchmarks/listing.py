"""Memory of a data set of a million images: listed, split by contents, made a manifest, saved and loaded again.

    python -m benchmarks.listing [--keys 1000000]

Nothing is read: the listing is made up (the names, ETags and sizes that storage.list_files would give for class folders
on S3), and what an earlier inspection knows of every file is made up from its name, or, with --table, given as a table
of a million rows, which counts too. Peaks are the kernel's, of this whole process and its libraries. The last line is
one JSON object: listing_peak_mb (to the manifest and its fingerprint), saved_peak_mb (after saving and loading too).
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping

import pyarrow as pa

from tlray import storage
from tlray.config import DataConfig
from tlray.data.inspect import Inspected
from tlray.data.manifest import Manifest, make_manifest
from tlray.runs.folder import write_format
from tlray.runs.manifest import load_manifest, save_manifest
from tlray.storage import FileInfo

LOCATION = "s3://bucket/datasets/photos/images"
NUM_CLASSES = 1000
ROWS_AT_ONCE = 16384


class KnownByName(Mapping[tuple[str, str], Inspected]):
    """An inspection that knows every file, and takes no memory: contents are made up from the name."""

    def __getitem__(self, key: tuple[str, str]) -> Inspected:
        uri, version = key
        return Inspected(uri, version, hashlib.sha256(uri.encode()).hexdigest(), 50_000, 500, 375)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        raise NotImplementedError

    def __len__(self) -> int:
        return 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--table", action="store_true", help="what is known is a table")
    arguments = parser.parse_args()
    print(f"python -m benchmarks.listing {' '.join(sys.argv[1:])}".strip())
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, pyarrow {pa.__version__}")
    storage.list_files = made_up_listing(arguments.keys)  # type: ignore[assignment]
    known = known_table(arguments.keys) if arguments.table else KnownByName()
    print(f"{'':12} {'seconds':>8} {'peak MB':>8}")
    print(f"{'imports':12} {'':>8} {peak_mb():8.0f}")

    started = time.perf_counter()
    manifest = make_manifest(DataConfig(train=LOCATION), known=known)
    assert len(manifest.fingerprint) == 64
    listing_peak = report("manifest", started)
    assert len(manifest.images) == arguments.keys
    check_splits(manifest)

    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as folder:
        write_format(folder, save_manifest(manifest, folder))
        report("saved", started)
        fingerprint = manifest.fingerprint
        del manifest, known
        started = time.perf_counter()
        assert load_manifest(folder).fingerprint == fingerprint
    saved_peak = report("loaded", started)
    print(json.dumps({"listing_peak_mb": round(listing_peak), "saved_peak_mb": round(saved_peak)}))


def made_up_listing(num_keys: int) -> object:
    """Stands in for storage.list_files: sorted keys in class folders."""

    def list_files(uri: str, num_threads: int = 1) -> Iterator[FileInfo]:
        per_class = -(-num_keys // NUM_CLASSES)
        for number in range(num_keys):
            name = f"{uri}/n{number // per_class:08}/n{number // per_class:08}_{number % per_class:08}.JPEG"
            yield FileInfo(name, 50_000, 1.7e9, hashlib.md5(name.encode()).hexdigest())

    return list_files


def known_table(num_keys: int) -> pa.Table:
    by_name, batches, schema = KnownByName(), [], None
    infos = storage.list_files(LOCATION)
    for start in range(0, num_keys, ROWS_AT_ONCE):
        some = [next(infos) for _ in range(min(ROWS_AT_ONCE, num_keys - start))]
        rows = [by_name[info.uri, info.version] for info in some]
        columns = {name: [getattr(row, name) for row in rows] for name in Inspected.__dataclass_fields__}
        batches.append(pa.record_batch(columns, schema=schema))
        schema = batches[0].schema
    return pa.Table.from_batches(batches)


def check_splits(manifest: Manifest) -> None:
    """The splits are about as large as they are meant to be, and a slice of them is an image of its class."""
    sizes = {split: len(manifest.split(split)) / len(manifest.images) for split in ("train", "val", "test")}  # type: ignore[arg-type]
    assert abs(sizes["train"] - 0.7) < 0.01, sizes
    image = manifest.split("val")[-1]
    assert manifest.classes[image.label] in image.uri


def report(what: str, started: float) -> float:
    peak = peak_mb()
    print(f"{what:12} {time.perf_counter() - started:8.1f} {peak:8.0f}", flush=True)
    return peak


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
