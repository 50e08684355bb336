"""Storage and manifest against a real S3 server (or moto's, where none is installed)."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tlray import storage
from tlray.config import DataConfig
from tlray.data.manifest import make_manifest
from tlray.errors import DataError, StorageError
from tlray.runs.folder import write_format
from tlray.runs.manifest import load_manifest, save_manifest

pytestmark = pytest.mark.s3
ROOT = Path(__file__).parent.parent.parent


def test_bytes_and_text_come_back_as_written(s3: Any) -> None:
    storage.write_bytes(f"{s3.uri}/a/b", b"\x00\xff")
    storage.write_text(f"{s3.uri}/ä ö/ü+?#.txt", "grün")
    storage.write_bytes(f"{s3.uri}/empty", b"")
    assert storage.read_bytes(f"{s3.uri}/a/b") == b"\x00\xff"
    assert storage.read_text(f"{s3.uri}/ä ö/ü+?#.txt") == "grün"
    assert storage.read_bytes(f"{s3.uri}/empty") == b""
    assert [file.uri for file in storage.list_files(s3.uri)] == [
        f"{s3.uri}/{name}" for name in ("a/b", "empty", "ä ö/ü+?#.txt")
    ]


def test_existence_is_of_objects_and_deleting_twice_is_no_error(s3: Any) -> None:
    uri = f"{s3.uri}/folder/object"
    storage.write_bytes(uri, b"")
    assert storage.exists(uri)
    assert not storage.exists(f"{s3.uri}/folder")
    assert not storage.exists(s3.uri)
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)


def test_more_objects_than_a_page_holds_are_all_listed_in_order_with_their_sizes(s3: Any) -> None:
    names = [f"{s3.uri}/many/{index:04}" for index in range(1100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda uri: storage.write_bytes(uri, uri[-1].encode() * int(uri[-1])), names))
    storage.write_bytes(f"{s3.uri}/many-others/0", b"")  # the prefix is a folder's, not any string's
    listed = list(storage.list_files(f"{s3.uri}/many"))
    assert [file.uri for file in listed] == names
    assert [file.size for file in listed] == [int(uri[-1]) for uri in names]
    assert len({file.version for file in listed}) == 10


def test_what_stands_for_a_folder_is_not_listed(s3: Any) -> None:
    import boto3

    boto3.session.Session().client("s3").put_object(Bucket=s3.name, Key="folder/", Body=b"")
    storage.write_bytes(f"{s3.uri}/folder/object", b"1")
    assert [file.uri for file in storage.list_files(s3.uri)] == [f"{s3.uri}/folder/object"]
    assert list(storage.list_files(f"{s3.uri}/nothing")) == []


def test_one_of_sixteen_racing_writers_wins(s3: Any) -> None:
    uri, start = f"{s3.uri}/prize", threading.Barrier(16)

    def race(number: int) -> bool:
        start.wait()
        return storage.create_exclusive(uri, f"writer {number}".encode())

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(race, range(16)))
    assert won.count(True) == 1
    assert storage.read_text(uri) == f"writer {won.index(True)}"


def test_a_writer_whose_answer_was_lost_still_learns_that_it_won(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tlray.storage.s3_access import access

    client = access().once
    put = client.put_object

    def put_twice(**arguments: Any) -> Any:  # what boto3 does when the connection breaks before the answer
        put(**arguments)
        return put(**arguments)

    monkeypatch.setattr(client, "put_object", put_twice)
    assert storage.create_exclusive(f"{s3.uri}/prize", b"mine")
    assert not storage.create_exclusive(f"{s3.uri}/prize", b"theirs")
    assert storage.read_bytes(f"{s3.uri}/prize") == b"mine"


def test_folders_go_up_and_single_files_come_down(s3: Any, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "large.bin").write_bytes(os.urandom(9 * 2**20))  # in parts
    (tmp_path / "small.txt").write_text("small")
    storage.upload_folder(tmp_path, f"{s3.uri}/export")
    assert storage.read_text(f"{s3.uri}/export/small.txt") == "small"
    with storage.local_copy(f"{s3.uri}/export/deep/large.bin") as path:
        assert path.name == "large.bin"
        assert path.read_bytes() == (tmp_path / "deep" / "large.bin").read_bytes()
    assert not path.exists()


@pytest.mark.parametrize(
    "operation",
    [
        storage.read_bytes,
        storage.exists,
        storage.check_writable,
        storage.pyarrow_filesystem,
        lambda uri: list(storage.list_files(uri)),
        lambda uri: storage.write_bytes(uri, b""),
        lambda uri: storage.create_exclusive(uri, b""),
        lambda uri: storage.local_copy(uri).__enter__(),
    ],
)
def test_a_missing_bucket_is_named_whatever_is_done(operation: Any, s3: Any) -> None:
    with pytest.raises(StorageError, match=r"bucket 'no-such-bucket' does not exist at http://127\.0\.0\.1") as caught:
        operation("s3://no-such-bucket/object")
    assert not isinstance(caught.value, storage.NotFoundError)
    assert "\n" not in str(caught.value)


def test_a_missing_object_is_named(s3: Any) -> None:
    with pytest.raises(storage.NotFoundError, match=f"^{s3.uri}/object does not exist$"):
        storage.read_bytes(f"{s3.uri}/object")
    with pytest.raises(storage.NotFoundError), storage.local_copy(f"{s3.uri}/object"):
        pass


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_said_to_be_refused_and_not_shown(
    variable: str, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if s3.kind == "moto":
        pytest.skip("moto accepts any credentials")
    monkeypatch.setenv(variable, "wrongwrongwrong")
    storage.forget_clients()
    for operation in (
        lambda: storage.read_bytes(f"{s3.uri}/object"),
        lambda: storage.check_writable(s3.uri),
        lambda: make_manifest(DataConfig(train=f"{s3.uri}/images")),
    ):
        with pytest.raises(StorageError, match=r"the credentials are refused by http://127\.0\.0\.1") as caught:
            operation()
        assert "wrongwrongwrong" not in str(caught.value)
        assert s3.environment["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


def test_a_bucket_of_somebody_else_is_denied(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if s3.kind == "moto":
        pytest.skip("moto lets everybody in")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "yes")
    storage.forget_clients()
    for operation in (lambda uri: storage.write_bytes(uri, b""), storage.read_bytes):
        with pytest.raises(StorageError, match=r"access denied by http://127.0.0.1:\d+ \(AccessDenied\)"):
            operation(f"{s3.uri}/object")


def test_credentials_endpoint_and_region_may_come_from_a_profile(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = s3.environment
    (tmp_path / "config").write_text(f"[profile lab]\nendpoint_url = {s3.endpoint}\nregion = us-east-1\n")
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id = {environment['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {environment['AWS_SECRET_ACCESS_KEY']}\n"
    )
    for name in environment:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    storage.forget_clients()
    storage.write_text(f"{s3.uri}/object", "by profile")
    filesystem, path = storage.pyarrow_filesystem(f"{s3.uri}/object")
    with filesystem.open_input_stream(path) as stream:
        assert stream.read() == b"by profile"


def test_pyarrow_reads_and_writes_where_boto3_does(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION")  # set for pyarrow by the function itself
    filesystem, path = storage.pyarrow_filesystem(f"{s3.uri}/runs")
    with filesystem.open_output_stream(f"{path}/object") as stream:
        stream.write(b"by pyarrow")
    assert storage.read_bytes(f"{s3.uri}/runs/object") == b"by pyarrow"


def test_another_process_reaches_the_server_with_the_environment_of_the_fixture(s3: Any) -> None:
    storage.write_text(f"{s3.uri}/object", "hello")
    code = "import sys; from tlray import storage; print(storage.read_text(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, f"{s3.uri}/object"],
        env={"PATH": os.environ["PATH"], **s3.environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "hello\n"


@pytest.mark.parametrize("own_splits", [False, True])
def test_a_local_folder_and_its_copy_on_s3_give_the_same_manifest(
    own_splits: bool, s3: Any, image_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_folder, tmp_path / "train")
    (tmp_path / "train" / "red" / "broken.jpg").write_text("<html>not found</html>")
    for name in ("val", "test"):
        for label in ("red", "green"):
            shutil.copytree(image_folder / label, tmp_path / name / label)
    storage.upload_folder(tmp_path, f"{s3.uri}/images")

    manifests = []
    for root in (str(tmp_path), f"{s3.uri}/images"):
        own = {"val": f"{root}/val", "test": f"{root}/test"} if own_splits else {}
        manifest = make_manifest(DataConfig(train=f"{root}/train", max_leaked_fraction=1, **own))
        assert load_manifest_after_saving(manifest, storage.join(root, "run")) == manifest
        manifests.append(
            replace(
                manifest,
                images=tuple(replace(image, uri=image.uri.removeprefix(root), version="") for image in manifest.images),
                bad=tuple(replace(image, uri=image.uri.removeprefix(root)) for image in manifest.bad),
                warnings=tuple(warning.replace(root, "") for warning in manifest.warnings),
            )
        )
    assert manifests[0] == manifests[1]
    assert len(manifests[0].bad) == 1
    assert manifests[0].num_leaked == (48 if own_splits else 0)


def load_manifest_after_saving(manifest: Any, run_uri: str) -> Any:
    write_format(run_uri, save_manifest(manifest, run_uri))
    return load_manifest(run_uri)


def test_an_empty_prefix_is_no_data(s3: Any) -> None:
    with pytest.raises(DataError, match=re.escape(f"data.train: {s3.uri}/nothing does not exist")):
        make_manifest(DataConfig(train=f"{s3.uri}/nothing"))


def test_a_download_is_a_copy_of_the_object(s3: Any, tmp_path: Path) -> None:
    storage.write_bytes(f"{s3.uri}/object", b"whole")
    storage.download(f"{s3.uri}/object", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"whole"
    with pytest.raises(storage.NotFoundError):
        storage.download(f"{s3.uri}/nothing", tmp_path / "nothing")


def test_objects_are_listed_with_the_time_they_were_written(s3: Any) -> None:
    storage.write_bytes(f"{s3.uri}/object", b"")
    (listed,) = storage.list_files(s3.uri)
    assert abs(listed.modified - time.time()) < 60
