"""One spelling of each class, whatever writes it: folders, tables, label files, and the folders of `evaluate`."""

import csv
import io
import json
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tlray.config import DataConfig
from tlray.data.class_names import ClassNameError, alike, class_name, matched
from tlray.data.manifest import Manifest, make_manifest
from tlray.errors import DataError

NFC, NFD = "café", unicodedata.normalize("NFD", "café")
SPELLINGS = (NFC, NFD, f"{NFC} ", f"\ufeff{NFC}\u3000", f"\u200b{NFD}\u00a0")  # of one class
WIDE_TEA = "".join(chr(ord(letter) + 0xFEE0) for letter in "tea")  # as Japanese keyboards write Latin letters
PNGS = []
for number in range(60):
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(sink, "PNG")
    PNGS.append(sink.getvalue())
Write = Callable[[Path, list[str]], Path]


def as_folder(folder: Path, labels: list[str]) -> Path:
    for number, label in enumerate(labels):
        (folder / "set" / label).mkdir(parents=True, exist_ok=True)
        (folder / "set" / label / f"{number}.png").write_bytes(PNGS[number])
    return folder / "set"


def as_csv(folder: Path, labels: list[str]) -> Path:
    for number in range(len(labels)):
        (folder / f"{number}.png").write_bytes(PNGS[number])
    with (folder / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("uri", "label"), *((f"{n}.png", label) for n, label in enumerate(labels))])
    return folder / "x.csv"


def as_parquet_of_names(folder: Path, labels: list[str]) -> Path:
    as_csv(folder, labels)
    uris = [f"{number}.png" for number in range(len(labels))]
    pq.write_table(pa.table({"uri": uris, "label": labels}), folder / "x.parquet")
    return folder / "x.parquet"


def as_parquet_of_images(folder: Path, labels: list[str]) -> Path:
    pq.write_table(pa.table({"image": PNGS[: len(labels)], "label": labels}), folder / "x.parquet")
    return folder / "x.parquet"


def as_tar(folder: Path, labels: list[str]) -> Path:
    with tarfile.open(folder / "x.tar", "w") as tar:
        for number, label in enumerate(labels):
            written = ("json", json.dumps({"label": label})) if number % 2 else ("cls", label)
            for ending, data in ((written[0], written[1].encode()), ("png", PNGS[number])):
                member = tarfile.TarInfo(f"{number:03}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return folder / "x.tar"


WRITERS = [as_folder, as_csv, as_parquet_of_names, as_parquet_of_images, as_tar]


def manifest_of(train: Path) -> Manifest:
    return make_manifest(DataConfig(train=str(train)))


@pytest.mark.parametrize("write", WRITERS)
def test_all_spellings_of_a_class_are_one_class_in_every_format(write: Write, tmp_path: Path) -> None:
    labels = ["tea" if number % 2 else SPELLINGS[number // 2 % 5] for number in range(60)]
    manifest = manifest_of(write(tmp_path, labels))
    assert manifest.classes == (NFC, "tea")
    assert np.bincount(manifest.images.labels).tolist() == [30, 30]  # type: ignore[attr-defined]


@pytest.mark.parametrize("write", WRITERS[:-1])
@pytest.mark.parametrize(("label", "reason"), [("a\x1b[31mb", "control character"), ("a\u202eb", "control character")])
def test_a_name_with_a_control_character_is_refused_by_place(
    write: Write, label: str, reason: str, tmp_path: Path
) -> None:
    labels = ["tea", "rose"] * 20 + [label]
    with pytest.raises(DataError, match=rf"^data\.train: .*(40\.png|row 41 of .*): .*{reason}"):
        manifest_of(write(tmp_path, labels))


@pytest.mark.parametrize("write", WRITERS[:-1])
def test_a_name_of_blanks_is_refused_by_place(write: Write, tmp_path: Path) -> None:
    labels = ["tea", "rose"] * 20 + ["\u3000 \u200b"]
    with pytest.raises(DataError, match=r"^data\.train: .*(40\.png|row 41 of .*): .* is no name of a class"):
        manifest_of(write(tmp_path, labels))


def test_samples_without_a_name_are_bad_with_their_reasons(tmp_path: Path) -> None:
    manifest = manifest_of(as_tar(tmp_path, ["tea", "rose"] * 28 + ["\u200b", "a\x07b"]))
    assert [image.reason for image in manifest.bad] == [
        "sample '056': its .cls holds no class: '\\u200b' is no name of a class",
        "sample '057': its .json holds no class: the class name 'a\\x07b' has a control character, '\\x07': rename it",
    ]


def test_names_that_differ_by_case_width_or_spaces_stay_apart_and_are_told(tmp_path: Path) -> None:
    manifest = manifest_of(as_csv(tmp_path, ["Rose", "rose", WIDE_TEA, "tea"] * 15))
    assert manifest.classes == ("Rose", "rose", "tea", WIDE_TEA)
    told = [note for note in manifest.notes if "differ only by case" in note]
    assert [note.partition(" are")[0] for note in told] == ["'Rose', 'rose'", f"'tea', {WIDE_TEA!r}"]
    assert alike(["red rose", "red  rose", "tulip"]) != ()
    assert alike(["red", "rose", "strasse", "tulip"]) == ()


def test_a_folder_means_the_class_of_a_model_in_another_spelling() -> None:
    assert matched(f"{NFD} ", ("tea", NFC)) == NFC
    assert matched(NFC, ("tea", f"{NFD} ")) == f"{NFD} "  # a model of an earlier version
    assert matched(NFD, (NFC, NFD)) == NFD  # whose classes were twins
    assert matched(f"{NFC} ", (NFC, NFD)) is None
    assert matched("coffee", ("tea", NFC)) is None


@given(st.text())
def test_a_name_is_its_own_spelling(text: str) -> None:
    try:
        name = class_name(text)
    except ClassNameError:
        return
    assert class_name(name) == name
    assert class_name(f" {unicodedata.normalize('NFD', text)}\n") == name
    assert name.strip() == name
