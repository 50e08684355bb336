"""Parquet is read without threads of Arrow's, which could abort a process that has done its work."""

import io
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tlray.storage import parquet

TABLE = pa.table({"uri": [f"image {number}" for number in range(1000)], "label": list(range(1000))})


@pytest.fixture
def data() -> bytes:
    sink = io.BytesIO()
    pq.write_table(TABLE, sink, row_group_size=400)
    return sink.getvalue()


def test_every_way_of_reading_gives_the_rows_that_were_written(data: bytes) -> None:
    assert parquet.read_table(data) == TABLE
    assert parquet.read_table(data, ("label",)) == TABLE.select(["label"])
    with parquet.open_file(io.BytesIO(data)) as file:
        assert parquet.read(file) == TABLE
        assert parquet.read_row_group(file, 1) == TABLE.slice(400, 400)
        assert pa.Table.from_batches(parquet.batches(file, 64, ["uri"])) == TABLE.select(["uri"])
        some = pa.Table.from_batches(parquet.batches(file, 300, ["label"], [0, 2]))
    assert some == pa.concat_tables([TABLE.slice(0, 400), TABLE.slice(800)]).select(["label"])


def test_what_is_no_parquet_file_is_an_error_of_arrow() -> None:
    with pytest.raises(pa.ArrowInvalid):
        parquet.read_table(b"PAR1 and no more")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts the threads that Linux lists")
def test_reading_starts_no_thread(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    path.write_bytes(data)
    program = """
import os, sys
import pyarrow.parquet
from tlray.storage import parquet
before = len(os.listdir("/proc/self/task"))
with open(sys.argv[1], "rb") as stream:
    parquet.read_table(stream.read(), ["uri"])
    with parquet.open_file(stream) as file:
        parquet.read(file)
        parquet.read_row_group(file, 1)
        list(parquet.batches(file, 64))
print(len(os.listdir("/proc/self/task")) - before)
"""
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
