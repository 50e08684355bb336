"""How S3 is reached and read: which client, with which credentials, what is asked for."""

import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import fault_proxy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tlray import storage
from tlray.errors import StorageError
from tlray.storage.s3_read import PART_BYTES

pytestmark = pytest.mark.s3
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 5 * PART_BYTES + 7])
def test_objects_of_any_size_come_back_whole_and_in_ranges(size: int, s3: Any, tmp_path: Path) -> None:
    uri, data = f"{s3.uri}/object", os.urandom(size)
    storage.write_bytes(uri, data)
    (info,) = storage.list_files(s3.uri)
    assert storage.read_bytes(uri) == data
    assert storage.read_bytes(uri, info.version) == data
    assert storage.read_range(uri, 0, size, info.version) == data
    assert storage.read_range(uri, size // 3, size // 2) == data[size // 3 : size // 3 + size // 2]
    storage.download(uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    for offset, more in ((0, size + 1), (size, 1), (size + 5, 1)):
        said = f"^{uri} has {size} bytes, too few for {more} bytes from byte {offset} on$"
        with pytest.raises(StorageError, match=said):
            storage.read_range(uri, offset, more)


def test_an_empty_object_that_changed_is_said_to_have_changed(s3: Any) -> None:
    uri = f"{s3.uri}/object"
    storage.write_bytes(uri, b"full")
    (info,) = storage.list_files(s3.uri)
    storage.write_bytes(uri, b"")
    with pytest.raises(storage.ChangedError):
        storage.read_bytes(uri, info.version)


def test_keys_that_look_like_paths_are_not_taken_for_others(s3: Any) -> None:
    """object_store reads `x` for `x/`; these keys are left to boto3."""
    client = boto3.session.Session().client("s3")
    keys = ["x", "x/", "/x", "y/z", "y//z", "odd\tkey", "percent%20", "percent "]
    for key in keys:
        client.put_object(Bucket=s3.name, Key=key, Body=key.encode())
    assert [storage.read_bytes(f"s3://{s3.name}/{key}") for key in keys] == [key.encode() for key in keys]
    with pytest.raises(storage.NotFoundError):
        storage.read_bytes(f"s3://{s3.name}/percent%20/")


def test_a_bucket_is_not_an_object(s3: Any) -> None:
    with pytest.raises(StorageError, match=f"^{s3.uri} is a bucket, not an object$"):
        storage.read_bytes(s3.uri)


def test_an_open_file_reads_like_the_bytes(s3: Any) -> None:
    uri, data = f"{s3.uri}/object", os.urandom(3 * 2**20)
    storage.write_bytes(uri, data)
    with storage.open_file(uri) as file:
        assert file.seekable()
        assert file.read(10) == data[:10]
        assert file.seek(-100, os.SEEK_END) == len(data) - 100
        assert file.read() == data[-100:]
        assert file.read() == b""
        file.seek(2**20)
        assert file.read(2**20 + 5) == data[2**20 : 2**21 + 5]
        file.seek(len(data) + 10)
        assert file.read(5) == b""
        file.seek(0)
        assert file.read() == data


@pytest.mark.parametrize("num_rows", [0, 10, 300_000])
def test_pyarrow_reads_parquet_from_an_open_file(num_rows: int, s3: Any, tmp_path: Path) -> None:
    numbers = pa.array(range(num_rows), pa.int64())
    table = pa.table({"number": numbers, "text": numbers.cast(pa.string())})
    pq.write_table(table, tmp_path / "table.parquet")
    storage.write_bytes(f"{s3.uri}/table.parquet", (tmp_path / "table.parquet").read_bytes())
    for uri in (str(tmp_path / "table.parquet"), f"{s3.uri}/table.parquet"):
        with storage.open_file(uri) as file:
            assert pq.read_table(file).equals(table)
        with storage.open_file(uri) as file:
            assert pq.ParquetFile(file).read(["number"]).equals(table.select(["number"]))


def test_a_forked_process_reads_although_its_parent_has_read_before(s3: Any) -> None:
    storage.write_text(f"{s3.uri}/object", "hello")
    code = """
import os, sys
from tlray import storage
assert storage.read_text(sys.argv[1]) == "hello"
child = os.fork()
text = storage.read_text(sys.argv[1])
if not child:
    os._exit(0 if text == "hello" else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    environment = {"PATH": os.environ["PATH"], **s3.environment}
    command = [sys.executable, "-c", code, f"{s3.uri}/object"]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, timeout=100)


def test_public_objects_are_read_without_credentials(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client = boto3.session.Session().client("s3")
    client.put_bucket_acl(Bucket=s3.name, ACL="public-read")
    client.put_object(Bucket=s3.name, Key="a/public", Body=b"1", ACL="public-read")
    client.put_object(Bucket=s3.name, Key="private", Body=b"2")
    for names in (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ()):
        with monkeypatch.context() as patch:
            for name in names:
                patch.delenv(name)
            if not names:
                patch.setenv("AWS_ACCESS_KEY_ID", "wrong")
                patch.setenv("AWS_NO_SIGN_REQUEST", "yes")
            storage.forget_clients()
            assert storage.read_bytes(f"{s3.uri}/a/public") == b"1"
            assert [info.size for info in storage.list_files(s3.uri)] == [1, 1]
            filesystem, path = storage.pyarrow_filesystem(f"{s3.uri}/a/public")
            with filesystem.open_input_stream(path) as stream:
                assert stream.read() == b"1"
            if s3.kind == "ceph":
                said = "keeps the credentials back" if not names else "no credentials found; set AWS_ACCESS_KEY_ID and"
                for operation in (storage.read_bytes, lambda uri: storage.write_bytes(uri, b"")):
                    with pytest.raises(StorageError, match=f"denied by .* the bucket is not public, and .*{said}"):
                        operation(f"{s3.uri}/private")


def test_credentials_that_run_out_are_renewed_by_boto3(
    s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A credential process, whose credentials end in a minute each time, as a stand-in for an instance's role."""
    ends = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    answer = {
        "Version": 1,
        "AccessKeyId": s3.environment["AWS_ACCESS_KEY_ID"],
        "SecretAccessKey": s3.environment["AWS_SECRET_ACCESS_KEY"],
        "Expiration": ends,
    }
    (tmp_path / "credentials.json").write_text(json.dumps(answer))
    script = tmp_path / "give"
    script.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\ncat {tmp_path}/credentials.json\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {script}\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    storage.write_bytes(f"{s3.uri}/object", b"1")
    storage.forget_clients()
    for _ in range(20):
        assert storage.read_bytes(f"{s3.uri}/object") == b"1"
    asked = len((tmp_path / "asked").read_text().split())
    assert 3 <= asked < 10  # by the session, then by obstore, which keeps what it got for minutes


def test_a_bucket_in_another_region_is_looked_for_once(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{s3.uri}/object", b"1")
    scopes = []

    def say_where(connection: Any, answer: Any) -> None:
        others = [header for header in answer.headers if header[0].lower() != "x-amz-bucket-region"]
        answer.headers = [*others, ("x-amz-bucket-region", "eu-west-1")]
        connection.send(answer)

    def refuse_us_east_1(connection: Any, answer: Any) -> None:
        scopes.append(connection.headers["Authorization"].split("/")[2])
        if scopes[-1] == "us-east-1":
            body = b"<Error><Code>PermanentRedirect</Code></Error>"
            answer = fault_proxy.Answer(301, [], body, len(body))
        connection.send(answer)

    with fault_proxy.fault_proxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        storage.forget_clients()
        proxy.spoil(say_where, method="HEAD")
        proxy.spoil(refuse_us_east_1)
        assert [storage.read_bytes(f"{s3.uri}/object") for _ in range(3)] == [b"1"] * 3
        assert scopes == ["us-east-1", "eu-west-1", "eu-west-1", "eu-west-1"]
        proxy.heal()
        proxy.spoil(refuse_us_east_1)
        storage.forget_clients()
        said = r"the bucket is in another region \(PermanentRedirect\); set AWS_REGION to it$"
        with pytest.raises(StorageError, match=said):
            storage.read_bytes(f"{s3.uri}/object")


def test_the_region_may_be_said_as_aws_region(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    storage.forget_clients()
    assert storage.describe_access().region == "eu-north-1"
