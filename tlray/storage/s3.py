"""Objects on S3 and on servers that speak its protocol: the other half of `tlray.storage`.

Reads are in s3_read.py, s3_listing.py and s3_file.py, the clients in s3_access.py, how errors read in s3_errors.py.
boto3 and obstore are imported on first use.
"""

import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tlray.errors import StorageError
from tlray.storage import s3_access, s3_read
from tlray.storage.s3_access import Access, S3Access, access, forget_clients
from tlray.storage.s3_errors import NOT_FOUND, RequestFailed, bucket_and_key, one_line_errors
from tlray.storage.s3_file import open_file
from tlray.storage.s3_listing import list_files, list_folders
from tlray.storage.s3_read import read_bytes, read_range
from tlray.storage.s3_retry import with_retries
from tlray.storage.types import NotFoundError

if TYPE_CHECKING:
    import pyarrow.fs

__all__ = [
    "bucket_and_key",
    "create_exclusive",
    "delete",
    "describe_access",
    "download",
    "exists",
    "forget_clients",
    "list_files",
    "list_folders",
    "open_file",
    "pyarrow_filesystem",
    "read_bytes",
    "read_range",
    "replace",
    "upload",
    "version_of",
    "write_bytes",
]

CONFLICTS = 5  # of writes at the same time, before one gives up
# Where pyarrow looks for credentials by itself, in boto3's words; those that only boto3 finds are handed to it.
FOUND_BY_PYARROW = ("env", "shared-credentials-file", "iam-role", "container-role", "assume-role-with-web-identity")


def write_bytes(uri: str, data: bytes | memoryview) -> None:
    bucket, key = bucket_and_key(uri)
    with one_line_errors(uri):
        body = bytes(data)  # boto takes no views
        with_retries(bucket, lambda clients: clients.once.put_object(Bucket=bucket, Key=key, Body=body))


def upload(path: Path, uri: str) -> None:
    bucket, key = bucket_and_key(uri)

    def send(clients: Access) -> None:
        with path.open("rb") as file:
            clients.once.upload_fileobj(file, bucket, key)

    with one_line_errors(uri):
        with_retries(bucket, send)


def download(uri: str, path: Path) -> None:
    s3_read.download(uri, path)


def create_exclusive(uri: str, data: bytes) -> bool:
    bucket, key = bucket_and_key(uri)
    writer = {"tlray-writer": secrets.token_hex(8)}

    def put(clients: Access) -> None:
        clients.once.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*", Metadata=writer)

    with one_line_errors(uri):
        for attempt in range(CONFLICTS):
            try:
                with_retries(bucket, put)
            except RequestFailed as failure:
                if failure.status == 412:
                    # a put whose answer was lost is repeated: then what is there may be our own
                    there = with_retries(bucket, lambda clients: clients.once.head_object(Bucket=bucket, Key=key))
                    return bool(there["Metadata"] == writer)
                if failure.status != 409:  # 409: somebody else is writing it just now, try again
                    raise
                time.sleep(0.1 * 2**attempt)
            else:
                return True
    raise StorageError(f"{uri}: the server reported a conflicting write {CONFLICTS} times; try again")


def replace(uri: str, expected: bytes, data: bytes) -> bool:
    bucket, key = bucket_and_key(uri)
    with one_line_errors(uri):
        found = _object_or_none(bucket, key)
        if found is None or found[1] != expected:
            return False
        # Ceph's gateway compares what is sent with an ETag without quotes, others want them as RFC 9110 does
        for tag in (found[0], found[0].strip('"')):
            if _put_if_match(bucket, key, data, tag):
                return True
            now = _object_or_none(bucket, key)
            if now is None or now[1] != expected:
                # a put whose answer was lost is repeated: then what is there may be our own
                return now is not None and now[1] == data
    raise StorageError(f"{uri}: the server refuses to write with the condition `If-Match`, which it takes to share it")


def _put_if_match(bucket: str, key: str, data: bytes, tag: str) -> bool:
    """False when the object is said to have another ETag."""
    for attempt in range(CONFLICTS):
        try:
            with_retries(
                bucket, lambda clients: clients.once.put_object(Bucket=bucket, Key=key, Body=data, IfMatch=tag)
            )
        except RequestFailed as failure:
            if failure.status in (404, 412):
                return False
            if failure.status != 409:  # 409: somebody else is writing it just now, try again
                raise
            time.sleep(0.1 * 2**attempt)
        else:
            return True
    raise StorageError(f"s3://{bucket}/{key}: the server reported a conflicting write {CONFLICTS} times; try again")


def _object_or_none(bucket: str, key: str) -> tuple[str, bytes] | None:
    """(ETag, contents) in one answer."""

    def get(clients: Access) -> tuple[str, bytes]:
        answer = clients.once.get_object(Bucket=bucket, Key=key)
        return answer["ETag"], answer["Body"].read()

    try:
        return with_retries(bucket, get)
    except RequestFailed as failure:
        if failure.code in NOT_FOUND:
            return None
        raise


def version_of(uri: str) -> str:
    return s3_read.read_part(uri, 0, 1).version


def exists(uri: str) -> bool:
    if not bucket_and_key(uri)[1]:
        return False
    try:
        # not a HEAD: its answer does not tell a missing bucket from a missing object
        s3_read.read_part(uri, 0, 1)
    except NotFoundError:
        return False
    return True


def delete(uri: str) -> None:
    bucket, key = bucket_and_key(uri)
    with one_line_errors(uri):
        with_retries(bucket, lambda clients: clients.once.delete_object(Bucket=bucket, Key=key))


def pyarrow_filesystem(uri: str) -> tuple["pyarrow.fs.FileSystem", str]:
    """Endpoint and region go as arguments; secrets only where pyarrow would not find them itself."""
    import pyarrow.fs

    # as for boto3 in Access; pyarrow has no argument for it
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    bucket, _ = bucket_and_key(uri)
    with one_line_errors(uri):
        clients = access()
        next(iter(list_files(uri)), None)  # a HEAD of the bucket would not say what is wrong with it
        head = with_retries(bucket, lambda clients: clients.once.head_bucket(Bucket=bucket))
        options: dict[str, Any] = {
            "region": head.get("BucketRegion") or clients.once.meta.region_name or "us-east-1",
            "connect_timeout": clients.settings.connect_timeout,
            "request_timeout": clients.settings.request_timeout,
        }
        endpoint = urlsplit(clients.endpoint)
        if not (endpoint.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn")):
            # with the path where there is one, as of a gateway that serves more than S3
            options |= {"endpoint_override": endpoint.netloc + endpoint.path.rstrip("/"), "scheme": endpoint.scheme}
        found = clients.credentials
        if found is None:
            options["anonymous"] = True
        elif found.method not in FOUND_BY_PYARROW:
            secret = found.get_frozen_credentials()
            options |= {"access_key": secret.access_key, "secret_key": secret.secret_key, "session_token": secret.token}
    return pyarrow.fs.S3FileSystem(**options), uri.removeprefix("s3://").rstrip("/")


def describe_access() -> S3Access:
    """Where requests go and where the credentials come from; never the credentials."""
    with one_line_errors("s3://"):
        return s3_access.describe_access()
