"""Objects on S3 and on servers that speak its protocol: the other half of `tlray.storage`, and the only file on S3.

boto3 is imported on first use. Every process has one client, which all its threads share.
"""

import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tlray.errors import StorageError
from tlray.storage.types import FileInfo, NotFoundError

if TYPE_CHECKING:
    import pyarrow.fs

ATTEMPTS = 5  # of a request; boto3 waits longer after each
READ_ATTEMPTS = 3  # of a download whose connection broke half-way, which boto3 does not repeat
CONNECT_TIMEOUT = 10  # seconds
READ_TIMEOUT = 60  # seconds without a byte
MAX_CONNECTIONS = 64  # of a process; more threads than that wait for each other

NOT_FOUND = ("NoSuchKey", "404", "NotFound")
REFUSED_CREDENTIALS = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "InvalidClientTokenId",
)
# Where pyarrow looks for credentials by itself, in boto3's words; those that only boto3 finds are handed to it.
FOUND_BY_PYARROW = ("env", "shared-credentials-file", "iam-role", "container-role", "assume-role-with-web-identity")

_clients: dict[int, Any] = {}  # by process id: a forked process must not use its parent's connections
_clients_lock = threading.Lock()


# boto3's names of the places where it finds credentials; those not listed speak for themselves
CREDENTIAL_SOURCES = {
    "env": "the environment (AWS_ACCESS_KEY_ID)",
    "shared-credentials-file": "the credentials file",
    "config-file": "the configuration file",
    "iam-role": "the machine's role",
    "container-role": "the container's role",
    "assume-role-with-web-identity": "a web identity token",
}


@dataclass(frozen=True)
class S3Access:
    """How S3 is reached; `credentials` says where they come from, None when there are none."""

    endpoint: str
    region: str | None
    credentials: str | None


def bucket_and_key(uri: str) -> tuple[str, str]:
    """`s3://bucket/key` taken apart; the key may be empty."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,255}", bucket):
        raise StorageError(f"{uri}: {bucket!r} is not the name of a bucket; write s3://bucket/path")
    return bucket, key


def list_files(uri: str) -> Iterator[FileInfo]:
    bucket, key = bucket_and_key(uri)
    prefix = f"{key.rstrip('/')}/" if key else ""
    with _one_line_errors(uri):
        pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for page in pages:
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):  # such an empty object only stands for a folder
                    modified = entry["LastModified"].timestamp()
                    yield FileInfo(f"s3://{bucket}/{entry['Key']}", entry["Size"], modified, entry["ETag"].strip('"'))


def read_bytes(uri: str) -> bytes:
    from botocore.exceptions import HTTPClientError, IncompleteReadError, ReadTimeoutError

    bucket, key = bucket_and_key(uri)
    with _one_line_errors(uri):
        for _ in range(READ_ATTEMPTS - 1):
            response = _client().get_object(Bucket=bucket, Key=key)
            try:
                return response["Body"].read()
            except (HTTPClientError, IncompleteReadError, ReadTimeoutError):
                continue
        return _client().get_object(Bucket=bucket, Key=key)["Body"].read()


def write_bytes(uri: str, data: bytes) -> None:
    bucket, key = bucket_and_key(uri)
    with _one_line_errors(uri):
        _client().put_object(Bucket=bucket, Key=key, Body=data)


def upload(path: Path, uri: str) -> None:
    bucket, key = bucket_and_key(uri)
    with _one_line_errors(uri), path.open("rb") as file:
        _client().upload_fileobj(file, bucket, key)


def download(uri: str, path: Path) -> None:
    bucket, key = bucket_and_key(uri)
    if not exists(uri):  # the download itself cannot tell a missing bucket from a missing object
        raise NotFoundError(f"{uri} does not exist")
    with _one_line_errors(uri), path.open("wb") as file:
        _client().download_fileobj(bucket, key, file)


def create_exclusive(uri: str, data: bytes) -> bool:
    from botocore.exceptions import ClientError

    bucket, key = bucket_and_key(uri)
    writer = secrets.token_hex(8)
    with _one_line_errors(uri):
        for attempt in range(ATTEMPTS):
            try:
                _client().put_object(
                    Bucket=bucket, Key=key, Body=data, IfNoneMatch="*", Metadata={"tlray-writer": writer}
                )
            except ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if status == 412:
                    # boto3 repeats a put whose answer was lost: then what is there may be our own
                    return _client().head_object(Bucket=bucket, Key=key)["Metadata"].get("tlray-writer") == writer
                if status != 409:  # 409: somebody else is writing it just now, try again
                    raise
                time.sleep(0.1 * 2**attempt)
            else:
                return True
    raise StorageError(f"{uri}: the server reported a conflicting write {ATTEMPTS} times; try again")


def exists(uri: str) -> bool:
    from botocore.exceptions import ClientError

    bucket, key = bucket_and_key(uri)
    if not key:
        return False
    with _one_line_errors(uri):
        try:
            # not a HEAD: its answer does not tell a missing bucket from a missing object
            response = _client().get_object(Bucket=bucket, Key=key, Range="bytes=0-0")
        except ClientError as error:
            if error.response["Error"]["Code"] == "InvalidRange":  # an empty object
                return True
            if error.response["Error"]["Code"] in NOT_FOUND:
                return False
            raise
        response["Body"].close()
        return True


def delete(uri: str) -> None:
    bucket, key = bucket_and_key(uri)
    with _one_line_errors(uri):
        _client().delete_object(Bucket=bucket, Key=key)


def pyarrow_filesystem(uri: str) -> tuple["pyarrow.fs.FileSystem", str]:
    """Endpoint and region go as arguments; secrets only where pyarrow would not find them itself."""
    import pyarrow.fs

    # as for boto3 in _client; pyarrow has no argument for it
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    bucket, _ = bucket_and_key(uri)
    with _one_line_errors(uri):
        client = _client()
        next(iter(list_files(uri)), None)  # a HEAD of the bucket would not say what is wrong with it
        region = client.head_bucket(Bucket=bucket).get("BucketRegion") or client.meta.region_name or "us-east-1"
        options: dict[str, Any] = {
            "region": region,
            "connect_timeout": CONNECT_TIMEOUT,
            "request_timeout": READ_TIMEOUT,
        }
        endpoint = urlsplit(client.meta.endpoint_url)
        if not (endpoint.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn")):
            options |= {"endpoint_override": endpoint.netloc.rpartition("@")[2], "scheme": endpoint.scheme}
        found = _session().get_credentials()
        if found is not None and found.method not in FOUND_BY_PYARROW:
            secret = found.get_frozen_credentials()
            options |= {"access_key": secret.access_key, "secret_key": secret.secret_key, "session_token": secret.token}
    return pyarrow.fs.S3FileSystem(**options), uri.removeprefix("s3://").rstrip("/")


def describe_access() -> S3Access:
    """Where requests go and where the credentials come from; never the credentials."""
    with _one_line_errors("s3://"):
        session = _session()
        found = session.get_credentials()
        return S3Access(
            endpoint=session.client("s3").meta.endpoint_url,
            region=session.region_name,
            credentials=None if found is None else CREDENTIAL_SOURCES.get(found.method, found.method),
        )


def forget_clients() -> None:
    """Make the next use of S3 read the environment and ~/.aws again."""
    with _clients_lock:
        _clients.clear()


def _session() -> Any:
    import boto3

    return boto3.session.Session()


def _client() -> Any:
    from botocore.config import Config

    with _clients_lock:
        if os.getpid() not in _clients:
            config = Config(
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=READ_TIMEOUT,
                max_pool_connections=MAX_CONNECTIONS,
                request_checksum_calculation="when_required",  # older gateways refuse the checksums of newer SDKs
                response_checksum_validation="when_required",
            )
            _clients[os.getpid()] = _session().client("s3", config=config)
        return _clients[os.getpid()]


@contextmanager
def _one_line_errors(uri: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except StorageError:  # a ValueError too, but one that says it already
        raise
    except ClientError as error:
        raise _server_error(uri, error.response) from None
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
        raise StorageError(f"{uri}: {_client_reason(error)}") from None


def _server_error(uri: str, response: dict[str, Any]) -> StorageError:
    """What the server's answer means for the user; its code is always named."""
    bucket, _ = bucket_and_key(uri)
    code = str(response["Error"].get("Code", "unknown error"))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code == "NoSuchBucket":
        return StorageError(f"bucket {bucket!r} does not exist at {_endpoint()}: create it, or correct {uri}")
    if code in NOT_FOUND:
        return NotFoundError(f"{uri} does not exist")
    if code in REFUSED_CREDENTIALS:
        return StorageError(
            f"{uri}: the credentials are refused by {_endpoint()} ({code}); check AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if status == 403:
        return StorageError(f"{uri}: access denied by {_endpoint()} ({code}); the credentials lack the permission")
    if status == 301:
        return StorageError(f"{uri}: the bucket is in another region ({code}); set AWS_REGION to it")
    message = " ".join(str(response["Error"].get("Message", "")).split())
    return StorageError(f"{uri}: {_endpoint()} answered {code} (HTTP {status}) {message}".rstrip())


def _client_reason(error: Exception) -> str:
    """Why a request got no answer; connection errors are put in own words, as boto3 quotes whole URLs."""
    from botocore import exceptions

    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if isinstance(error, (exceptions.ConnectionError, exceptions.HTTPClientError)):
        return f"cannot connect to {_endpoint()} ({type(error).__name__}); check AWS_ENDPOINT_URL and the network"
    if isinstance(error, ValueError) and not isinstance(error, exceptions.BotoCoreError):
        return "the endpoint is not a URL; check AWS_ENDPOINT_URL"
    return " ".join(str(error).split())


def _endpoint() -> str:
    """Scheme, host and port of the server, without a user name or password that the URL might hold."""
    endpoint = urlsplit(_client().meta.endpoint_url)
    return f"{endpoint.scheme}://{endpoint.netloc.rpartition('@')[2]}"
