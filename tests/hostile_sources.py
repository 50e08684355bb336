"""Small files of every kind that holds or names images, damaged at random, and what reading makes of them.

data = damaged("x.tar", originals(), seed=0, number=4711)
outcome("x.tar", data, folder)          # "read" or "refused"; anything else is a failure of ours
"""

import contextlib
import gzip
import io
import json
import random
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzzing import change
from tlray.config import DataConfig
from tlray.data.decode import BadImageError
from tlray.data.sources import open_source
from tlray.errors import DataError, StorageError

NUM = 6
IMAGE = b"\x89PNG and so on; nobody decodes it here " * 4
GOOD = ("read", "refused")


def originals() -> dict[str, bytes]:
    """By name: what is damaged. All are read whole as they are."""
    names = [f"{'deep/' * 30}{number:04}" for number in range(NUM)]
    labels = ["cat", "dog"] * (NUM // 2)
    rows = "".join(f'{name}.png,{label},"a note\n""{name}"""\n' for name, label in zip(names, labels, strict=True))
    table = f"uri,label,note\n{rows}".encode()
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    structs = [{"bytes": IMAGE, "path": "x.png"}] * NUM
    images = pa.table({"image": structs, "label": [0, 1] * (NUM // 2)})
    images = images.replace_schema_metadata({"huggingface": json.dumps(features)})
    tar = _tar(tarfile.GNU_FORMAT)
    return {
        "gnu.tar": tar,
        "pax.tar": _tar(tarfile.PAX_FORMAT),
        "packed.tar.gz": gzip.compress(tar),
        "x.csv": table,
        "x.csv.gz": gzip.compress(table),
        "table.parquet": _parquet(pa.table({"uri": names, "label": pa.array(labels).dictionary_encode()})),
        "images.parquet": _parquet(images),
        "x.zip": _zip(names, labels),
    }


def damaged(name: str, files: Mapping[str, bytes], seed: int, number: int) -> bytes:
    """File `number` of `seed` and this name: always the same."""
    choice = random.Random(f"{seed}/{number}/{name}")
    packed = name.endswith(".gz") and choice.random() < 0.7  # else gzip's checksum refuses nearly all
    data = bytearray(gzip.decompress(files[name]) if packed else files[name])
    others = [bytes(data)]
    for _ in range(choice.choice((1, 1, 2, 3, 8))):
        change(data, others, choice)
    if ".tar" in name and choice.random() < 0.7:
        _renew_checksums(data)
    return gzip.compress(bytes(data)) if packed else bytes(data)


def outcome(name: str, data: bytes, folder: Path) -> str:
    """One of GOOD, or what is wrong: an error of another kind, or of more than one line."""
    path = folder / name
    path.write_bytes(data)
    try:
        source = open_source("data.train", str(path), DataConfig(train=str(path)))
        entries = list(source.entries())
        for entry in entries:
            f"{entry.uri} {entry.class_name} {entry.split} {entry.reason}".encode()
        for _, load in source.read([entry for entry in entries if not entry.reason]):
            with contextlib.suppress(BadImageError, StorageError):
                load()
    except (DataError, StorageError) as error:
        line = str(error)
        return "refused" if "\n" not in line and len(line) < 3000 else f"not one line: {line!r}"
    except MemoryError:
        return "too much memory"
    except BaseException as error:
        return f"raised {type(error).__name__}: {error}".replace("\n", " ")
    return "read"


def _tar(kind: int) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=kind) as tar:
        for number in range(NUM):
            key = f"{'deep/' * 30}{number:04}"  # too long for a plain header
            document = json.dumps({"label": ["cat", "dog"][number % 2], "more": [{"deep": [1, 2]}]}).encode()
            for ending, data in (("png", IMAGE), ("json", document)):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=4, write_page_index=True)
    return sink.getvalue()


def _zip(names: list[str], labels: list[str]) -> bytes:
    sink = io.BytesIO()
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
    with zipfile.ZipFile(sink, "w") as archive:
        for number, (name, label) in enumerate(zip(names, labels, strict=True)):
            archive.writestr(f"{label}/{name}.png", IMAGE, methods[number % len(methods)])
    return sink.getvalue()


def _renew_checksums(data: bytearray) -> None:
    """Of every block that looks like a tar header, so that the damage behind the checksum is read."""
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar":
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
