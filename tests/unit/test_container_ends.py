"""A container is read to its proven end, or reported in one line: nothing of it is ever taken for all of it."""

import bz2
import gzip
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tlray import storage
from tlray.config import DataConfig
from tlray.data.sources import Entry, open_source
from tlray.data.sources.csv_file import BLOCK_BYTES
from tlray.errors import DataError

NUM = 60
PICTURE = b"\x89PNG not looked at here" * 30


def entries_of(path: Path, **fields: Any) -> list[Entry]:
    return list(open_source("data.train", str(path), DataConfig(train=str(path), **fields)).entries())


def refused(path: Path, **fields: Any) -> str:
    with pytest.raises(DataError) as caught:
        entries_of(path, **fields)
    line = str(caught.value)
    assert line.startswith("data.train: ")
    assert str(path) in line
    assert "\n" not in line
    return line


def shard(first: int = 0, stop: int = NUM, **options: Any) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", **options) as tar:
        for number in range(first, stop):
            for name, data in ((f"{number:04d}.png", PICTURE), (f"{number:04d}.cls", b"%d" % (number % 2))):
                add(tar, name, data)
    return sink.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


def header_of(data: bytes, name: str) -> int:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmember(name).offset


@pytest.mark.parametrize("options", [{"format": tarfile.GNU_FORMAT}, {"format": tarfile.PAX_FORMAT}, {"bufsize": 512}])
def test_a_whole_shard_of_any_format_is_read_whole(options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    options = {name: value for name, value in options.items() if name != "bufsize"}
    path.write_bytes(shard(**options))
    assert len(entries_of(path)) == NUM
    path.write_bytes(shard(**options) + bytes(10_000))  # padded to the blocks of a tape
    assert len(entries_of(path)) == NUM


WHOLE = shard()
AT = header_of(WHOLE, "0040.png")
END = len(WHOLE.rstrip(b"\0")) + -len(WHOLE.rstrip(b"\0")) % 512


def damaged() -> bytes:
    data = bytearray(WHOLE)
    data[AT + 148 : AT + 154] = b"999999"  # the checksum
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (WHOLE[:AT], f"ends at byte {AT}, without two empty blocks"),
        (WHOLE[: AT + 100], f"ends within the header at byte {AT}"),
        (WHOLE[: AT + 512 + 100], "unexpected end of data"),
        (WHOLE[:END], f"ends at byte {END}, without two empty blocks"),
        (WHOLE[: END + 512], f"ends at byte {END + 512}, without two empty blocks"),
        (damaged(), f"has a damaged header at byte {AT}"),
        (WHOLE[:AT] + bytes(512) + WHOLE[AT:], f"second tar file begins behind its end, at byte {AT + 512}"),
        (shard(0, 40) + shard(40, 60), "joined with `cat`: keep them apart, or join them with `tar --concatenate`"),
        (WHOLE + b"<html>", f"other bytes behind its end, at byte {len(WHOLE)}"),
        (gzip.compress(WHOLE), "it is compressed with gzip"),
        (bz2.compress(WHOLE), "it is compressed with bzip2"),
        (b"", "empty file"),
    ],
)  # fmt: skip
def test_what_is_no_whole_tar_file_is_refused_with_the_place(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(data)
    line = refused(tmp_path / "s.tar")
    assert "is not a whole, uncompressed tar file: " in line
    assert reason in line


def test_a_shard_cut_anywhere_never_passes_for_a_whole_one(tmp_path: Path) -> None:
    choice = random.Random(0)
    for stop in [*choice.sample(range(1, END + 1024), 60), *range(AT, AT + 4096, 512)]:
        (tmp_path / "s.tar").write_bytes(WHOLE[:stop])
        refused(tmp_path / "s.tar")


def test_a_header_with_an_absurd_size_ends_nowhere_else_than_in_one_line(tmp_path: Path) -> None:
    for kind, size in ((tarfile.REGTYPE, -512), (tarfile.XHDTYPE, 2**40), (tarfile.GNUTYPE_LONGNAME, -1024)):
        member = tarfile.TarInfo("0.png")
        member.type, member.size = kind, size
        (tmp_path / "s.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + shard(1, 2))
        assert "copy or make it again" in refused(tmp_path / "s.tar")
    member.size = 0
    (tmp_path / "s.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) * 5000 + shard(1, 2))
    assert "copy or make it again" in refused(tmp_path / "s.tar")


def test_links_and_sparse_files_are_bad_with_a_remedy_and_never_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, fields in {
            "hard": {"type": tarfile.LNKTYPE, "linkname": "a/b.png"},
            "soft": {"type": tarfile.SYMTYPE, "linkname": "b.png"},
            "pipe": {"type": tarfile.FIFOTYPE},
            "sparse": {"pax_headers": {"GNU.sparse.map": "0,1", "GNU.sparse.size": "512", "GNU.sparse.numblocks": "1"}},
        }.items():
            add(tar, f"{name}.png", b"x" if name == "sparse" else b"", **fields)
            add(tar, f"{name}.cls", b"0")
    assert [entry.reason for entry in entries_of(tmp_path / "s.tar")] == [
        "sample 'hard': its .png is a link to a/b.png: make the tar with --dereference --hard-dereference",
        "sample 'soft': its .png is a link to b.png: make the tar with --dereference --hard-dereference",
        "sample 'pipe': its .png is no ordinary file (type b'6')",
        "sample 'sparse': its .png is stored as a sparse file: make the tar without --sparse",
    ]


def test_files_of_a_sample_that_lie_apart_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for number in range(5):
            add(tar, f"{number}.cls", b"0")
        for number in range(5):
            add(tar, f"{number}.png", PICTURE)
    line = refused(tmp_path / "s.tar")
    assert line.endswith("the files of sample '0' do not lie side by side; make the tar file with `tar --sort=name`")


ROWS = b"uri,label\n" + b"".join(b"%d.png,%d\n" % (number, number % 2) for number in range(1000))


def test_gzip_of_several_members_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(ROWS) + gzip.compress(b"more.png,1\n"))
    assert len(entries_of(tmp_path / "x.csv.gz")) == 1001


@pytest.mark.parametrize("change", ["cut", "no length", "checksum", "length", "garbage", "half a member"])
def test_the_end_of_gzip_is_proved(change: str, tmp_path: Path) -> None:
    data = gzip.compress(ROWS)
    changed = {
        "cut": data[: len(data) // 2],
        "no length": data[:-4],
        "checksum": data[:-8] + b"\0\1\2\3" + data[-4:],
        "length": data[:-4] + b"\0\1\2\3",
        "garbage": data + b"garbage",
        "half a member": data + data[:30],
    }[change]
    (tmp_path / "x.csv.gz").write_bytes(changed)
    assert "cannot be read as CSV" in refused(tmp_path / "x.csv.gz")


def test_a_last_line_of_a_csv_with_too_few_values_is_said_to_be_cut(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(ROWS[:-3])
    assert "Expected 2 columns, got 1" in (line := refused(tmp_path / "x.csv"))
    assert line.endswith("its last line has no newline at its end: was the file cut?")


@pytest.mark.parametrize("size", [1000, BLOCK_BYTES // 3, 2 * BLOCK_BYTES], ids=["small", "a block", "several blocks"])
def test_newlines_between_quotes_are_read_at_any_size(size: int, tmp_path: Path) -> None:
    note = '"' + "x" * (size // 80) + "\n" + "y" * (size // 80) + '"'
    text = "uri,label,note\n" + "".join(f"{number}.png,{number % 2},{note}\n" for number in range(40))
    (tmp_path / "x.csv").write_text(text)
    assert len(entries_of(tmp_path / "x.csv")) == 40


@pytest.mark.parametrize("at", [10, 39])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_quotation_mark_that_is_not_closed_swallows_no_rows(at: int, column: int, tmp_path: Path) -> None:
    rows = [[f"{number}.png", str(number % 2), "note"] for number in range(40)]
    rows[at][column] = '"' + rows[at][column]
    (tmp_path / "x.csv").write_text("uri,label,note\n" + "".join(",".join(row) + "\n" for row in rows))
    assert f"in the row that begins in line {at + 2}" in refused(tmp_path / "x.csv")


def test_two_quotation_marks_that_are_not_closed_are_noticed_in_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('uri,label\na.png,0\n"b.png,1\nc.png,1\n"d.png,0\n')
    assert "row 2 of" in (line := refused(tmp_path / "x.csv"))
    assert "is a quotation mark missing?" in line


def table(names: list[str], **options: Any) -> bytes:
    sink = io.BytesIO()
    rows = {"uri": names, "label": ["ab"[number % 2] for number in range(len(names))]}
    pq.write_table(pa.table(rows), sink, **options)
    return sink.getvalue()


@pytest.mark.parametrize("options", [{}, {"write_page_index": True}, {"row_group_size": 7}, {"version": "1.0"}])
def test_whole_parquet_files_of_any_kind_are_read(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(table([f"{number}.png" for number in range(50)], **options))
    assert len(entries_of(tmp_path / "x.parquet")) == 50


@pytest.mark.parametrize("options", [{}, {"write_page_index": True}])
def test_what_is_no_whole_parquet_file_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    one, two = (table([f"{name}{number}.png" for number in range(50)], **options) for name in "ab")
    long = table([f"{number:09d}.png" for number in range(500)], **options)
    for data, reason in (
        (one[:-1], ""),
        (one[: len(one) // 2], ""),
        (b"xxxx" + one[4:], "does not begin with Parquet's mark"),
        (one + two, "two Parquet files are joined in it"),
        (one + long, "two Parquet files are joined in it"),
        (long + one, "two Parquet files are joined in it"),
        (one[:100] + one[160:], ""),
        (b"", ""),
    ):
        (tmp_path / "x.parquet").write_bytes(data)
        line = refused(tmp_path / "x.parquet")
        assert "cannot be read as Parquet" in line
        assert reason in line


def test_a_flipped_bit_in_a_page_with_a_checksum_is_noticed(tmp_path: Path) -> None:
    data = bytearray(
        table(
            [f"{number}.png" for number in range(50)],
            write_page_checksum=True,
            compression="none",
            use_dictionary=False,
        )
    )
    data[data.index(b"40.png")] ^= 1
    (tmp_path / "x.parquet").write_bytes(data)
    assert "cannot be read as Parquet" in refused(tmp_path / "x.parquet")


def test_a_label_of_json_nested_without_end_is_a_bad_sample(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        add(tar, "0.png", PICTURE)
        add(tar, "0.json", b'{"label": ' + b"[" * 100_000)
        add(tar, "1.png", PICTURE)
        add(tar, "1.json", json.dumps({"label": "x" * 2**20}).encode())
    first, second = entries_of(tmp_path / "s.tar")
    assert first.reason.endswith("nested too deeply")
    assert second.reason == "sample '1': its .json is larger than 1048576 bytes"


@pytest.mark.s3
def test_the_end_of_a_shard_on_s3_is_proved_too(s3: Any) -> None:
    storage.write_bytes(f"{s3.uri}/s.tar", WHOLE)
    storage.write_bytes(f"{s3.uri}/cut.tar", WHOLE[:AT])
    assert len(entries_of(f"{s3.uri}/s.tar")) == NUM
    assert f"ends at byte {AT}, without two empty blocks" in refused(f"{s3.uri}/cut.tar")
