"""One function decides what a location is; what exists is itself, and what does not is named with what was meant."""

import gzip
import io
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_sources import CLASSES, IMAGES, label_of, manifest_of, samples, write_tar
from tlray import storage
from tlray.cli import main
from tlray.config import DataConfig
from tlray.data.inputs import expand
from tlray.data.prepared import with_preparation
from tlray.data.read import read_original
from tlray.errors import BackboneError, DataError, InputError, StorageError
from tlray.inference.predict import find_export, open_model
from tlray.storage.locations import CHECKSUMS, describe_missing, locate


def write(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


KINDS = {
    "a.jpg": "image", "B.PNG": "image", "c.csv": "csv", "L.CSV": "csv", "c.CSV.gz": "csv", "x.parquet": "parquet",
    "X.PARQUET": "parquet", "s.tar": "webdataset", "S.TAR": "webdataset", "s.Tar.Gz": "webdataset",
    "s.tgz": "webdataset", "z.ZIP": "zip", "l.txt": "file", "no-ending": "file", "champion.json": "champion",
    "photo[1].jpg": "image", "what?.tar": "webdataset", "a*b": "file",
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_a_file_is_what_its_ending_says_in_any_case_and_is_itself(name: str, kind: str, tmp_path: Path) -> None:
    found = locate(str(write(tmp_path / name)))
    assert (found.kind, found.uri, found.is_file) == (kind, str(tmp_path / name), True)


@pytest.mark.parametrize("name", ["photos [1]", "what?", "a*b", "x.parquet", "s.tar", "set.zip", "l.csv", "a.jpg"])
def test_a_folder_is_a_folder_whatever_its_name(name: str, tmp_path: Path) -> None:
    for image, data in IMAGES.items():
        write(tmp_path / name / label_of(image) / f"{image}.png", data)
    assert locate(str(tmp_path / name)).kind == "folder"
    assert manifest_of(tmp_path / name).classes == CLASSES
    assert len(list(expand(str(tmp_path / name)))) == len(IMAGES)


def test_folders_with_marks_are_bundles_runs_and_champions(tmp_path: Path) -> None:
    write(tmp_path / "bundle" / CHECKSUMS)
    for name in ("config.yaml", "manifest.parquet"):
        write(tmp_path / "run" / name)
    write(tmp_path / "home" / "champion.json")
    assert [locate(str(tmp_path / name)).kind for name in ("bundle", "run", "home")] == ["bundle", "run", "champion"]
    for name, words in (("bundle", "an export bundle"), ("run", "a run folder"), ("home", "a champion")):
        with pytest.raises(DataError, match=f"{name} is {words}, not labelled images"):
            manifest_of(tmp_path / name)
        with pytest.raises(DataError, match=f"{name} is {words}, not images"):
            list(expand(str(tmp_path / name)))


def test_only_what_does_not_exist_may_be_a_pattern(tmp_path: Path) -> None:
    write(tmp_path / "a[0-9].jpg")
    write(tmp_path / "a1.jpg")
    assert [info.uri for info in expand(str(tmp_path / "a[0-9].jpg"))] == [str(tmp_path / "a[0-9].jpg")]
    assert [info.uri for info in expand(str(tmp_path / "a[0-8].jpg"))] == [str(tmp_path / "a1.jpg")]
    with pytest.raises(DataError, match="patterns are for the images of"):
        manifest_of(tmp_path / "b*")


def test_a_missing_path_is_told_with_the_nearest_name_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "runs" / "birds" / "20260101" / "config.yaml")
    monkeypatch.chdir(tmp_path)
    assert describe_missing("runs/brids") == "runs/brids does not exist; did you mean runs/birds?"
    assert describe_missing("runs/brids/20260101").endswith("did you mean runs/birds/20260101?")
    assert describe_missing(f"{tmp_path}/run").endswith(f"did you mean {tmp_path}/runs?")
    assert describe_missing("elsewhere/quite") == "elsewhere/quite does not exist"
    for call in (open_model, find_export, lambda given: list(expand(given))):
        with pytest.raises(InputError, match=r"runs/brids does not exist; did you mean runs/birds\?"):
            call("runs/brids")
    with pytest.raises(DataError, match=r"data\.train: .*runs/brids does not exist; did you mean .*runs/birds\?"):
        manifest_of("runs/brids")


def test_a_model_that_exists_as_a_path_is_that_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "timm" / "resnet18" / "notes.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="timm/resnet18 is a folder without exports"):
        open_model("timm/resnet18")
    with pytest.raises(DataError, match="is a file of no known kind: give an export bundle"):
        open_model("timm/resnet18/notes.txt")
    with pytest.raises(BackboneError, match="timm/resnet1888"):
        open_model("timm/resnet1888")


@pytest.mark.parametrize("name", ["l.txt", "x.jsonl", "s.tar.bz2", "s.7z", "x.feather", "no-ending", "a.jpg"])
def test_a_file_of_an_unknown_kind_says_what_is_supported(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        manifest_of(write(tmp_path / name))
    line = str(caught.value)
    assert line.startswith(f"data.train: {tmp_path}/{name} is a")
    assert "one sub-folder a class, or a file that ends in .tar, .tar.gz, .tgz, .parquet, .csv, .csv.gz, .zip" in line


def test_a_format_that_contradicts_a_files_name_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.parquet is a Parquet file by its name, where data\.format=csv"):
        manifest_of(write(tmp_path / "x.parquet"), format="csv")


def test_containers_are_no_images_to_predict(tmp_path: Path) -> None:
    for name in ("x.csv", "x.parquet", "s.tar", "z.zip"):
        with pytest.raises(DataError, match="not images: give image files, folders of them, or patterns"):
            list(expand(str(write(tmp_path / name))))


def test_devices_and_links_to_nothing_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    for name, message in (("pipe", "is neither a file nor a folder"), ("link", "is a link to nowhere, which does not")):
        with pytest.raises(StorageError, match=message):
            locate(str(tmp_path / name))
    with pytest.raises(StorageError, match="cannot hold a NUL"):
        locate("a\0b")


def test_predict_says_what_is_missing_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jpg")
    write(tmp_path / "runs" / "mistaken" / "x")
    with pytest.raises(SystemExit) as leaving:
        main(["predict", "runs/mistyped", "a.jpg"])
    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith("error: runs/mistyped does not exist; did you mean runs/mistaken?")


@pytest.mark.s3
def test_locations_on_s3_are_what_they_are_locally(s3: Any) -> None:
    for name in ("photos [1]/a/1.jpg", "set/S.TAR", "x.parquet/part-0.parquet", "runs/birds/1/config.yaml"):
        storage.write_bytes(f"{s3.uri}/{name}", b"x")
    storage.write_bytes(f"{s3.uri}/runs/birds/1/manifest.parquet", b"x")
    kinds = {"photos [1]": "folder", "set/S.TAR": "webdataset", "x.parquet": "folder", "runs/birds/1": "run"}
    assert {name: locate(f"{s3.uri}/{name}").kind for name in kinds} == kinds
    assert locate(f"{s3.uri}/photos [2]").kind == "pattern"
    assert [info.uri for info in expand(f"{s3.uri}/photos [1]")] == [f"{s3.uri}/photos [1]/a/1.jpg"]
    assert describe_missing(f"{s3.uri}/sat") == f"{s3.uri}/sat does not exist; did you mean {s3.uri}/set?"
    with pytest.raises(DataError, match=r"data\.train: .*/sat does not exist; did you mean"):
        manifest_of(f"{s3.uri}/sat")


def zipped(**options: Any) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", options.pop("method", zipfile.ZIP_DEFLATED)) as archive:
        for name, data in IMAGES.items():
            archive.writestr(f"{label_of(name)}/{name}.png", data)
        for name, data in options.items():
            archive.writestr(name, data)
    return sink.getvalue()


def refused_zip(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(DataError) as caught:
        manifest_of(write(tmp_path / "x.zip", data))
    assert str(caught.value).startswith(f"data.train: {tmp_path}/x.zip cannot be read as a zip file: ")
    return str(caught.value)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_files_of_every_method_are_read_whole_and_at_any_place(method: int, tmp_path: Path) -> None:
    manifest = manifest_of(write(tmp_path / "x.zip", zipped(method=method)))
    assert len(manifest.images) == len(IMAGES)
    assert {read_original(image) for image in manifest.images} == set(IMAGES.values())


def test_the_end_of_a_zip_file_is_proved(tmp_path: Path) -> None:
    data = zipped()
    assert "list of members is not at its end" in refused_zip(tmp_path, data[:-30])
    assert "list of members is not at its end" in refused_zip(tmp_path, data[: len(data) // 2])
    assert "7 bytes behind its end" in refused_zip(tmp_path, data + b"garbage")
    assert "bytes in front of its first member" in refused_zip(tmp_path, data + data)
    assert "bytes in front of its first member" in refused_zip(tmp_path, b"garbage" + data)
    number = data.rindex(b"PK\5\6") + 10
    changed = data[:number] + (len(IMAGES) + 1).to_bytes(2, "little") + data[number + 2 :]
    assert f"{len(IMAGES)} members, where its end counts {len(IMAGES) + 1}" in refused_zip(tmp_path, changed)


def test_a_damaged_member_of_a_zip_file_is_a_bad_image(tmp_path: Path) -> None:
    data = bytearray(zipped(method=zipfile.ZIP_STORED))
    [first, *_] = IMAGES.values()
    data[data.index(first) + 30] ^= 1
    [bad] = manifest_of(write(tmp_path / "x.zip", bytes(data))).bad
    assert bad.reason.startswith("cannot be unpacked: Bad CRC-32")


def test_zip_bombs_are_bounded(tmp_path: Path) -> None:
    data = bytearray(zipped(**{"cat/bomb.png": bytes(10**7)}))
    at = data.rindex(b"cat/bomb.png") - 46
    assert data[at : at + 4] == b"PK\1\2"
    data[at + 24 : at + 28] = (100).to_bytes(4, "little")  # says that it unpacks to 100 bytes
    [bad] = manifest_of(write(tmp_path / "x.zip", bytes(data))).bad
    assert bad.reason.startswith("cannot be unpacked: Bad CRC-32")
    data[at + 24 : at + 28] = (2**31).to_bytes(4, "little")
    [bad] = manifest_of(write(tmp_path / "x.zip", bytes(data))).bad
    assert bad.reason == f"unpacks to {2**31} bytes, more than {2**29}"
    data[at + 24 : at + 28] = (10**7).to_bytes(4, "little")
    data[at + 42 : at + 46] = (0).to_bytes(4, "little")  # its bytes are those of another member
    assert "overlaps the next" in refused_zip(tmp_path, bytes(data))


def test_a_tar_file_in_gzip_is_prepared_bounded_and_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Path(write_tar(tmp_path / "x.tar", samples(list(IMAGES)))).read_bytes()
    whole = write(tmp_path / "x.tar.gz", gzip.compress(plain))
    assert with_preparation(DataConfig(train=str(whole))).prepare == "always"
    assert with_preparation(DataConfig(train=str(tmp_path / "x.tar"))).prepare == "never"
    with pytest.raises(DataError, match=r"x\.tar\.gz can only be read in its order, and data\.prepare=never"):
        manifest_of(whole, prepare="never")
    packed = gzip.compress(plain)
    for number, (data, reason) in enumerate(
        (
            (packed[:-4], "cannot be read as a tar file"),
            (packed[: len(packed) // 2], "cannot be read as a tar file"),
            (packed[:-8] + zlib.crc32(b"other").to_bytes(4, "little") + packed[-4:], "CRC check failed"),
            (packed + b"garbage", "Not a gzipped file"),
            (gzip.compress(plain + plain), "a second tar file begins behind its end"),
            (gzip.compress(plain[:-10_240]), "is not a whole tar file in gzip"),
        )
    ):
        with pytest.raises(DataError, match=reason):
            manifest_of(write(tmp_path / f"{number}.tar.gz", data))
    monkeypatch.setattr("tlray.data.sources.tar.MAX_UNPACKED_BYTES", 10**6)
    with pytest.raises(DataError, match=r"it unpacks to more than \d+ bytes, which images do not"):
        manifest_of(write(tmp_path / "bomb.tar.gz", gzip.compress(plain + bytes(10**8))))
