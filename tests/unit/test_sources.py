"""The same images in every format that they come in: class folders, tables, Parquet with bytes, WebDataset shards."""

import csv
import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tlray.config import DataConfig
from tlray.data.manifest import Manifest, make_manifest
from tlray.data.sources import open_source, read_image
from tlray.errors import DataError, StorageError
from tlray.storage.locations import Location

CLASSES = ("cat", "dog", "owl")
PER_CLASS = 20


def png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


IMAGES = {
    f"{name}{index:02}": png(100 * label + index) for label, name in enumerate(CLASSES) for index in range(PER_CLASS)
}


def label_of(name: str) -> str:
    return name[:3]


def facts(manifest: Manifest) -> set[tuple[str, str, str]]:
    """What is the same in every format: (content id, class, split)."""
    return {(image.content_id, manifest.classes[image.label], image.split) for image in manifest.images}


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    """The images in class folders."""
    for name, data in IMAGES.items():
        (tmp_path / "loose" / label_of(name)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "loose" / label_of(name) / f"{name}.png").write_bytes(data)
    return tmp_path / "loose"


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def rows_of(loose: Path) -> list[tuple[str, str]]:
    """(relative URI, label) for a table that lies beside the folder, not sorted."""
    rows = [(f"{loose.name}/{label_of(name)}/{name}.png", label_of(name)) for name in IMAGES]
    return rows[::-1]


def write_tar(path: Path, files: Sequence[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(path)


def samples(names: Sequence[str], ending: str = "cls") -> list[tuple[str, bytes]]:
    files = []
    for name in names:
        label = json.dumps({"label": label_of(name)}) if ending == "json" else f"{label_of(name)}\n"
        files += [(f"deep/{name}.{ending}", label.encode()), (f"deep/{name}.png", IMAGES[name])]
    return files


def parquet_images(path: Path, names: Sequence[str], **columns: Any) -> str:
    table = pa.table({"image": [IMAGES[name] for name in names], "label": [label_of(n) for n in names], **columns})
    pq.write_table(table, path, row_group_size=7)
    return str(path)


def manifest_of(train: str | Path, **fields: Any) -> Manifest:
    return make_manifest(DataConfig(train=str(train), **fields))


@pytest.fixture
def from_folder(loose: Path) -> set[tuple[str, str, str]]:
    return facts(manifest_of(loose))


def make_csv(folder: Path, loose: Path) -> str:
    return write_csv(folder / "images.csv", ("label", "more", "uri"), [(b, 1, a) for a, b in rows_of(loose)])


def make_gzip(folder: Path, loose: Path) -> str:
    path = Path(make_csv(folder, loose))
    (folder / "images.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    return str(folder / "images.csv.gz")


def make_table(folder: Path, loose: Path) -> str:
    uris, labels = zip(*rows_of(loose), strict=True)
    pq.write_table(pa.table({"uri": uris, "label": pa.array(labels).dictionary_encode()}), folder / "images.parquet")
    return str(folder / "images.parquet")


def make_bytes(folder: Path, loose: Path) -> str:
    names = list(IMAGES)
    (folder / "parts").mkdir()
    parquet_images(folder / "parts" / "0.parquet", names[:41])
    parquet_images(folder / "parts" / "1.parquet", names[41:])
    return str(folder / "parts")


def make_hugging_face(folder: Path, loose: Path) -> str:
    structs = [{"bytes": data, "path": f"{name}.png"} for name, data in IMAGES.items()]
    table = pa.table({"image": structs, "label": [label_of(name) for name in IMAGES]})
    pq.write_table(table, folder / "train.parquet")
    return str(folder / "train.parquet")


def make_shards(folder: Path, loose: Path) -> str:
    names = list(IMAGES)
    (folder / "shards").mkdir()
    for index, ending in enumerate(("cls", "json", "txt")):
        write_tar(folder / "shards" / f"{index}.tar", samples(names[index::3], ending))
    return str(folder / "shards")


def make_packed_shards(folder: Path, loose: Path) -> str:
    for path in Path(make_shards(folder, loose)).iterdir():
        path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    return str(folder / "shards")


def make_zip(folder: Path, loose: Path) -> str:
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(loose.rglob("*.png"), reverse=True):
            archive.write(path, f"set/{path.relative_to(loose)}")
            archive.writestr(f"__MACOSX/set/._{path.name}", b"x")
    return str(folder / "set.zip")


def make_upper_case(folder: Path, loose: Path) -> str:
    write_tar(folder / "S.TAR", samples(list(IMAGES)))
    return str(folder / "S.TAR")


def make_upper_case_bytes(folder: Path, loose: Path) -> str:
    return parquet_images(folder / "X.PARQUET", list(IMAGES))


def make_upper_case_csv(folder: Path, loose: Path) -> str:
    return str(Path(make_csv(folder, loose)).rename(folder / "L.CSV"))


MAKERS = {
    "csv": (make_csv, "a manifest in CSV"),
    "csv.gz": (make_gzip, "a manifest in CSV"),
    "parquet": (make_table, "a manifest in Parquet"),
    "parquet with images": (make_bytes, "Parquet files with the images in them"),
    "parquet of Hugging Face": (make_hugging_face, "Parquet files with the images in them"),
    "webdataset": (make_shards, "WebDataset shards"),
    "webdataset in gzip": (make_packed_shards, "WebDataset shards"),
    "webdataset in capitals": (make_upper_case, "WebDataset shards"),
    "parquet in capitals": (make_upper_case_bytes, "Parquet files with the images in them"),
    "csv in capitals": (make_upper_case_csv, "a manifest in CSV"),
    "zip": (make_zip, "zip files: a folder of images, one sub-folder a class"),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("named", [False, True], ids=["auto", "named"])
def test_every_format_gives_the_same_images_classes_and_splits(
    kind: str, named: bool, tmp_path: Path, loose: Path, from_folder: set[tuple[str, str, str]]
) -> None:
    make, description = MAKERS[kind]
    options = {"format": kind.partition(" ")[0].partition(".")[0]} if named else {}
    manifest = manifest_of(make(tmp_path, loose), **options)
    assert facts(manifest) == from_folder
    assert len(manifest.images) == len(IMAGES)
    assert manifest.notes[0].startswith(f"data.train: {description}")
    for image in manifest.images[::7]:
        data = read_image(image.uri, image.version)
        assert hashlib.sha256(data).hexdigest() == image.content_id


def test_entries_come_sorted(tmp_path: Path, loose: Path) -> None:
    for make, location in ((None, str(loose)), (make_csv, ""), (make_table, "")):
        data = DataConfig(train=make(tmp_path, loose) if make else location)
        uris = [entry.uri for entry in open_source("data.train", str(data.train), data).entries()]
        assert uris == sorted(uris)
        assert len(uris) == len(IMAGES)


def test_a_table_may_name_its_columns_and_splits_otherwise(tmp_path: Path, loose: Path) -> None:
    names = {"train": "train", "val": "validation", "test": "test"}
    splits = ["train", "val", "test", "train"] * 15
    rows = [(uri, label, names[split]) for (uri, label), split in zip(rows_of(loose), splits, strict=True)]
    path = write_csv(tmp_path / "x.csv", ("path", "species", "fold"), rows)
    manifest = manifest_of(path, columns={"uri": "path", "label": "species", "split": "fold"})
    assert manifest.classes == CLASSES
    expected = {
        hashlib.sha256((tmp_path / u).read_bytes()).hexdigest(): s for (u, *_), s in zip(rows, splits, strict=True)
    }
    assert {image.content_id: image.split for image in manifest.images} == expected


def test_a_table_that_says_train_and_test_has_val_split_off_train(tmp_path: Path, loose: Path) -> None:
    rows = [(*row, "test" if index % 3 == 0 else "train") for index, row in enumerate(rows_of(loose))]
    manifest = manifest_of(write_csv(tmp_path / "x.csv", ("uri", "label", "split"), rows), val_fraction=0.3)
    tested = {str(tmp_path / uri) for uri, _, split in rows if split == "test"}
    assert {image.uri for image in manifest.split("test")} == tested
    assert 0 < len(manifest.split("val")) < 30


def test_whole_numbers_are_classes_in_numerical_order(tmp_path: Path, loose: Path) -> None:
    numbers = {"cat": 2, "dog": 10, "owl": 9}
    uris = [uri for uri, _ in rows_of(loose)]
    labels = [numbers[label] for _, label in rows_of(loose)]
    pq.write_table(pa.table({"uri": uris, "label": labels}), tmp_path / "x.parquet")
    from_parquet = manifest_of(tmp_path / "x.parquet")
    assert from_parquet.classes == ("2", "9", "10")
    from_csv = manifest_of(write_csv(tmp_path / "x.csv", ("uri", "label"), list(zip(uris, labels, strict=True))))
    assert from_csv == Manifest(from_parquet.classes, from_parquet.images, (), from_csv.notes)


def test_uris_may_be_absolute_and_leave_the_tables_folder(tmp_path: Path, loose: Path) -> None:
    (tmp_path / "tables").mkdir()
    rows = [
        (f"../{uri}" if index % 2 else str(tmp_path / uri), label) for index, (uri, label) in enumerate(rows_of(loose))
    ]
    manifest = manifest_of(write_csv(tmp_path / "tables" / "x.csv", ("uri", "label"), rows))
    assert {image.uri for image in manifest.images} == {str(path) for path in loose.rglob("*.png")}


def test_a_relative_uri_of_a_table_on_s3_is_an_object_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "uri,label\n../a/1.jpg,x\ns3://other/2.jpg,y\nsub/3.jpg,y\n"
    monkeypatch.setattr("tlray.data.sources.detect.locate", lambda uri: Location(uri, "csv"))
    monkeypatch.setattr("tlray.storage.s3.download", lambda uri, path: path.write_text(text))
    source = open_source("data.train", "s3://bucket/deep/x.csv", DataConfig(train="s3://bucket/deep/x.csv"))
    assert [entry.uri for entry in source.entries()] == [
        "s3://bucket/a/1.jpg",
        "s3://bucket/deep/sub/3.jpg",
        "s3://other/2.jpg",
    ]


def test_a_row_whose_image_is_not_there_is_bad_with_a_reason(tmp_path: Path, loose: Path) -> None:
    rows = [*rows_of(loose), ("gone.png", "cat")]
    manifest = manifest_of(write_csv(tmp_path / "x.csv", ("uri", "label"), rows))
    assert [(image.uri, image.reason) for image in manifest.bad] == [(str(tmp_path / "gone.png"), "does not exist")]


def test_excluded_patterns_apply_to_what_the_format_names(tmp_path: Path, loose: Path) -> None:
    table = manifest_of(make_csv(tmp_path, loose), exclude=("*/owl/*",))
    assert table.classes == ("cat", "dog")
    shards = manifest_of(make_shards(tmp_path, loose), exclude=("2.tar", "deep/cat0*"))
    kept = [name for index, name in enumerate(IMAGES) if index % 3 != 2 and not name.startswith("cat0")]
    assert {image.content_id for image in shards.images} == {hashlib.sha256(IMAGES[name]).hexdigest() for name in kept}


def test_samples_that_are_not_whole_are_bad_with_reasons(tmp_path: Path) -> None:
    names = list(IMAGES)
    odd = [
        ("no-label.png", IMAGES[names[0]]),
        ("no-image.cls", b"cat"),
        ("two.left.png", IMAGES[names[0]]),
        ("two.right.jpg", IMAGES[names[1]]),
        ("two.cls", b"cat"),
        ("empty.png", IMAGES[names[2]]),
        ("empty.cls", b" \n"),
        ("no-key.png", IMAGES[names[3]]),
        ("no-key.json", b'{"species": "cat"}'),
        ("html.png", b"<html>404</html>"),
        ("html.cls", b"cat"),
        (".hidden.png", b"nothing"),
    ]
    path = write_tar(tmp_path / "x.tar", samples(names) + odd)
    manifest = manifest_of(path, max_bad_fraction=0.5)
    assert len(manifest.images) == len(IMAGES)
    assert manifest.classes == CLASSES
    assert sorted(image.reason for image in manifest.bad) == [
        "a web page, not an image",
        "sample 'empty': its .cls holds no class",
        "sample 'no-image' has no image (.cls)",
        "sample 'no-key': its .json has no 'label' (data.columns.label names another key); it has 'species'",
        "sample 'no-label' has no label (.cls, .json or .txt)",
        "sample 'two' has 2 images (.left.png, .right.jpg): name one of them with data.columns.image, such as left.png",
    ]


def test_containers_are_gone_through_once_for_names_and_once_for_images(
    tmp_path: Path, loose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tlray import storage

    opened: Counter[str] = Counter()
    open_file = storage.open_file

    def counted(uri: str) -> Any:
        opened[Path(uri).name] += 1
        return open_file(uri)

    monkeypatch.setattr("tlray.storage.open_file", counted)
    manifest_of(make_shards(tmp_path, loose))
    assert opened == {"0.tar": 2, "1.tar": 2, "2.tar": 2}


def test_a_container_that_is_replaced_after_the_listing_is_said_to_have_changed(tmp_path: Path, loose: Path) -> None:
    data = DataConfig(train=make_shards(tmp_path, loose))
    source = open_source("data.train", str(data.train), data)
    entries = list(source.entries())
    write_tar(tmp_path / "shards" / "1.tar", samples(list(IMAGES)[::-1]))
    with pytest.raises(StorageError, match=r"1\.tar has changed since it was listed"):
        list(source.read(entries))


Write = Callable[[Path], str]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "uri,label\na.png,\n", r"row 1 of .*x\.csv has no label"),
        ("x.csv", "uri,label\na.png,cat\n,cat\n", r"row 2 of .*x\.csv has no URI"),
        ("x.csv", "uri,label\na.png,cat\nb.png,cat\na.png,dog\n", r"row 3 of .*names .*a\.png, as row 1 of .* does"),
        ("x.csv", "path,label\na.png,cat\n", r"no column 'uri'; name another one with data\.columns\.uri .*'path'"),
        ("x.csv", "uri,label\na.png,cat,more\n", r"x\.csv cannot be read as CSV: .*Expected 2 columns, got 3"),
        ("x.csv", "", r"cannot be read as CSV: Empty CSV file"),
        ("x.csv", "uri,label\n", r"x\.csv names no images"),
        ("x.csv", "uri,label\nhttps://host/a.png,cat\n", r"row 1 of .*only local paths and s3://"),
        ("x.csv", "uri,label,split\na.png,cat,holdout\n", r"row 1 .* has split 'holdout'; expected train, val or test"),
        ("x.csv", "uri,label,split\na.png,cat,\n", r"row 1 .* has split ''; expected train, val or test"),
        ("x.parquet", "not Parquet", r"x\.parquet cannot be read as Parquet"),
        ("x.tar", "not a tar file" * 100, r"x\.tar is not a whole, uncompressed tar file"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file_are_named_in_one_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        manifest_of(tmp_path / name)
    assert str(caught.value).startswith("data.train: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "x.tar"])
def test_a_file_that_does_not_exist_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^data\.train: {tmp_path}/{name} does not exist$"):
        manifest_of(tmp_path / name)


def test_a_shard_cut_short_is_refused(tmp_path: Path) -> None:
    path = Path(write_tar(tmp_path / "x.tar", samples(list(IMAGES))))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 - 100])
    with pytest.raises(DataError, match=r"x\.tar is not a whole, uncompressed tar file"):
        manifest_of(path)


def test_columns_of_unfit_types_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": ["a.png"], "label": [0.5]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="column 'label' holds double; expected strings or whole numbers"):
        manifest_of(tmp_path / "x.parquet")
    pq.write_table(pa.table({"image": ["a.png"], "label": ["cat"]}), tmp_path / "y.parquet")
    with pytest.raises(DataError, match="column 'image' holds string; expected the bytes of images"):
        manifest_of(tmp_path / "y.parquet")


def test_a_missing_label_in_parquet_names_its_row(tmp_path: Path) -> None:
    names = list(IMAGES)[:3]
    table = pa.table({"image": [IMAGES[name] for name in names], "label": ["cat", "dog", None]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"row 3 of .*x\.parquet has no label"):
        manifest_of(tmp_path / "x.parquet")


def test_a_row_without_bytes_is_bad(tmp_path: Path) -> None:
    images = [*IMAGES.values(), None]
    table = pa.table({"image": images, "label": [*map(label_of, IMAGES), "cat"]})
    pq.write_table(table, tmp_path / "x.parquet")
    manifest = manifest_of(tmp_path / "x.parquet")
    [bad] = manifest.bad
    assert (bad.uri, bad.reason) == (f"{tmp_path}/x.parquet#60", "its row holds no bytes")


def test_own_val_and_rows_that_say_val_are_one_too_many(tmp_path: Path, loose: Path) -> None:
    rows = [(*row, "val" if index % 3 == 0 else "train") for index, row in enumerate(rows_of(loose))]
    table = write_csv(tmp_path / "x.csv", ("uri", "label", "split"), rows)
    with pytest.raises(DataError, match=r"data\.val: .* is given, but 20 images of data\.train are val too"):
        manifest_of(table, val=str(loose))
    with pytest.raises(DataError, match=r"^data\.test: row 1 of .* has split 'val'; a location named as data\.test"):
        manifest_of(loose, test=table)


def test_locations_may_differ_in_format(tmp_path: Path, loose: Path) -> None:
    fields = {"test": make_shards(tmp_path, loose), "val": make_csv(tmp_path, loose)}
    manifest = manifest_of(loose, max_leaked_fraction=1, **fields)
    assert Counter(image.split for image in manifest.images) == {"train": 60, "val": 60, "test": 60}
    assert manifest.num_leaked == 120
    assert [note.partition(":")[0] for note in manifest.notes] == ["data.train", "data.val", "data.test"]
