"""What is known of an odd source is said: which key, column or image was meant, what was skipped, what ids mean."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.unit.test_sources import CLASSES, IMAGES, label_of, manifest_of, write_tar
from tlray.data.litter import is_litter
from tlray.errors import DataError

NAMES = list(IMAGES)
LABELS = [label_of(name) for name in NAMES]


def hugging_face(table: pa.Table, column: str, names: Sequence[str]) -> pa.Table:
    """The table with Hugging Face's metadata for a column of class ids."""
    features = {column: {"names": list(names), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def images_table(
    path: Path, labels: list[Any], image: str = "image", label: str = "label", names: Sequence[str] = ()
) -> Path:
    structs = [{"bytes": data, "path": "x.png"} for data in IMAGES.values()]
    pq.write_table(hugging_face(pa.table({image: structs, label: labels}), label, names), path)
    return path


def test_json_without_the_label_names_the_keys_that_are_there(tmp_path: Path) -> None:
    files = [
        file for n in NAMES for file in ((f"{n}.png", IMAGES[n]), (f"{n}.json", b'{"labels": "x", "class_id": 1}'))
    ]
    with pytest.raises(DataError) as caught:
        manifest_of(write_tar(tmp_path / "x.tar", files))
    line = str(caught.value)
    assert "nothing in" in line
    assert "its .json has no 'label' (data.columns.label names another key); it has 'labels', 'class_id'" in line
    assert "did you mean 'labels'?" in line


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("[1]", "holds no object with a 'label'"),
        ("{", "is not JSON"),
        ('{"label": [1]}', "has no class in 'label', but a list"),
        ('{"label": 0.5}', "has no class in 'label', but a fraction"),
        ('{"label": true}', "has no class in 'label', but true or false"),
        ('{"label": null}', "has no class in 'label', but null"),
        ("{}", "it has nothing"),
    ],
)
def test_odd_json_says_what_it_holds(document: str, reason: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("0.png", IMAGES[NAMES[0]]), ("0.json", document.encode())])
    with pytest.raises(DataError, match="nothing in") as caught:
        manifest_of(path)
    assert reason in str(caught.value)


def with_masks(path: Path) -> str:
    other = {name: IMAGES[NAMES[number - 1]] for number, name in enumerate(NAMES)}
    return write_tar(
        path,
        [
            file
            for name in NAMES
            for file in (
                (f"{name}.seg.png", other[name]),
                (f"{name}.png", IMAGES[name]),
                (f"{name}.cls", label_of(name).encode()),
            )
        ],
    )


def test_of_several_images_the_plain_one_is_taken_and_that_is_said(tmp_path: Path) -> None:
    manifest = manifest_of(with_masks(tmp_path / "x.tar"))
    assert {image.num_bytes for image in manifest.images} == {len(data) for data in IMAGES.values()}
    assert len(manifest.images) == len(IMAGES)
    [note] = [note for note in manifest.notes if "several images" in note]
    assert "60 samples have several images" in note
    assert "data.columns.image" in note


def test_data_columns_image_names_the_image_of_a_sample(tmp_path: Path) -> None:
    plain, masks = (
        manifest_of(with_masks(tmp_path / "x.tar"), columns={"image": image}) for image in ("png", "seg.png")
    )
    assert {image.uri for image in plain.images}.isdisjoint(image.uri for image in masks.images)
    assert not any("several images" in note for note in (*plain.notes, *masks.notes))


def test_parquet_with_its_images_in_another_column_names_it_and_the_option(tmp_path: Path) -> None:
    path = images_table(tmp_path / "x.parquet", LABELS, image="img")
    with pytest.raises(
        DataError, match=r"no column 'uri'; the bytes of its images are in 'img': data.columns.image=img"
    ):
        manifest_of(path)
    with pytest.raises(DataError, match=r"column 'img' holds images: name it with data.columns.image=img"):
        manifest_of(path, columns={"uri": "img"})
    assert len(manifest_of(path, columns={"image": "img"}).images) == len(IMAGES)


def test_a_missing_label_column_names_the_one_that_is_meant(tmp_path: Path) -> None:
    path = images_table(tmp_path / "x.parquet", [0, 1, 2] * 20, label="fine", names=CLASSES)
    with pytest.raises(DataError, match=r"no column 'label'.*did you mean data\.columns\.label=fine\?"):
        manifest_of(path)


@pytest.mark.parametrize("with_images", [True, False])
def test_class_ids_get_the_names_of_their_metadata_and_minus_one_is_no_label(
    with_images: bool, loose_images: Path, tmp_path: Path
) -> None:
    ids = [CLASSES.index(label) for label in LABELS]
    ids[5] = ids[30] = -1
    if with_images:
        path = images_table(tmp_path / "x.parquet", ids, names=CLASSES)
    else:
        path = loose_images / "x.parquet"
        pq.write_table(
            hugging_face(pa.table({"uri": [f"{n}.png" for n in NAMES], "label": ids}), "label", CLASSES), path
        )
    manifest = manifest_of(path)
    assert manifest.classes == CLASSES
    assert Counter(manifest.classes[image.label] for image in manifest.images) == {"cat": 19, "dog": 19, "owl": 20}
    assert not manifest.bad
    assert any(
        note.startswith("data.train: 2 rows have the label -1, which stands for no label") for note in manifest.notes
    )


@pytest.fixture
def loose_images(tmp_path: Path) -> Path:
    for name, data in IMAGES.items():
        (tmp_path / f"{name}.png").write_bytes(data)
    return tmp_path


def test_a_class_id_without_a_name_is_refused(tmp_path: Path) -> None:
    path = images_table(tmp_path / "x.parquet", [0, 1, 3] * 20, names=CLASSES)
    with pytest.raises(DataError, match=r"row 3 of .* has class id 3, where the file's metadata names 3 classes"):
        manifest_of(path)


def test_minus_one_in_a_column_of_strings_is_a_class(tmp_path: Path) -> None:
    assert manifest_of(images_table(tmp_path / "x.parquet", ["-1", "1"] * 30)).classes == ("-1", "1")


@pytest.mark.parametrize(
    "metadata", [b"{", b"[]", b'{"info": 1}', b'{"info": {"features": {"label": {"names": [1]}}}}']
)
def test_metadata_that_makes_no_sense_names_nothing(metadata: bytes, tmp_path: Path) -> None:
    table = pa.table({"image": list(IMAGES.values()), "label": [0, 1] * 30})
    pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}), tmp_path / "x.parquet")
    assert manifest_of(tmp_path / "x.parquet").classes == ("0", "1")


LITTER = (
    "Thumbs.db",
    "desktop.ini",
    ".DS_Store",
    "._1.png",
    "__MACOSX/cat/._1.png",
    "cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg",
    ".ipynb_checkpoints/1-checkpoint.png",
    "lost+found/x",
    ".directory",
    "$RECYCLE.BIN/desktop.ini",
    "System Volume Information/IndexerVolumeGuid",
    "Icon\r",
    ".dropbox.cache/x.png",
    "~$notes.docx",
    "#recycle/1.png",
    "cat_$folder$",
)


def test_litter_of_every_system_is_no_image_and_no_class_and_is_counted(tmp_path: Path) -> None:
    for name, data in IMAGES.items():
        (tmp_path / label_of(name)).mkdir(exist_ok=True)
        (tmp_path / label_of(name) / f"{name}.png").write_bytes(data)
    for name in LITTER:
        for place in (tmp_path, tmp_path / "cat"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(b"litter")
    manifest = manifest_of(tmp_path)
    assert manifest.classes == CLASSES
    assert len(manifest.images) == len(IMAGES)
    assert not manifest.bad
    assert any(
        note.startswith(f"data.train: {2 * len(LITTER)} hidden files, and files of the") for note in manifest.notes
    )


def test_litter_in_a_tar_file_is_no_sample_and_is_counted(tmp_path: Path) -> None:
    files = [
        file
        for name in NAMES
        for file in (
            (f"./{name}.png", IMAGES[name]),
            (f"./{name}.cls", label_of(name).encode()),
            (f"./._{name}.png", b"x"),
        )
    ]
    manifest = manifest_of(write_tar(tmp_path / "x.tar", [*files, ("__MACOSX/x.png", b"x")]))
    assert len(manifest.images) == len(IMAGES)
    assert not manifest.bad
    assert any("61 hidden files" in note for note in manifest.notes)


def test_names_of_users_are_no_litter() -> None:
    for path in ("cat/1.jpg", "Icon/1.jpg", "a.b/c..d", "../x.png", "thumbs/1.jpg", "recycle/1.jpg", "@home/1.jpg"):
        assert not is_litter(path)


def test_names_in_a_tar_file_that_are_not_utf_8_are_told_as_they_are(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo(b"\xff.png".decode("utf-8", "surrogateescape"))
        tar.addfile(member)
    (tmp_path / "x.tar").write_bytes(sink.getvalue())
    with pytest.raises(DataError, match="has no label") as caught:
        manifest_of(tmp_path / "x.tar")
    str(caught.value).encode()


def test_images_with_more_than_8_bits_say_how_they_were_scaled(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number, name in enumerate(["cat", "dog"] * 15):
        (tmp_path / name).mkdir(exist_ok=True)
        values = random.random((8, 8))
        kinds = {"f.tif": values.astype(np.float32), "w.png": (values * 65535).astype(np.uint16)}
        for ending, pixels in (kinds | {"b.png": (values * 255).astype(np.uint8)}).items():
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.{ending}")
    notes = manifest_of(tmp_path).notes
    assert any(note.startswith("data.train: 30 images have floating point values: those up to 1") for note in notes)
    assert any(note.startswith("data.train: 30 images have 16 bits a channel: 0 to 65535 became") for note in notes)
