"""The clients of S3 that a process has: boto3's, and one of obstore (Rust's object_store) for the reads of each bucket.

Endpoint, region, credentials and certificates of both are what boto3 finds; obstore asks boto3's session for the
credentials again as they run out. Where there are none, or AWS_NO_SIGN_REQUEST=yes, requests are not signed: public
buckets can be read like that.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tlray.storage.s3_listing_parser import parse_listing
from tlray.storage.s3_settings import S3Settings, asks_for_unsigned, settings_from_environment

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Store

MAX_CONNECTIONS = 64  # of a process; more threads than that wait for each other
# obstore asks for credentials anew when those it has would end within five minutes; boto3's session renews its own
# a quarter of an hour before they end
CREDENTIALS_LAST = timedelta(minutes=10)

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


class Access:
    """The clients of one process, shared by its threads."""

    def __init__(self) -> None:
        self.settings: S3Settings = settings_from_environment()
        self._session = new_session()
        self._lock = threading.RLock()
        self._stores: dict[str, S3Store] = {}
        self._regions: dict[str, str] = {}  # of buckets that are not in the session's
        self.credentials = None if asks_for_unsigned() else self._session.get_credentials()

    @cached_property
    def once(self) -> Any:
        """boto3's client without repetition, which is s3_retry's. It parses listings the fast way."""
        with self._lock:
            client = self._new_client()
            client.meta.events.register("before-parse.s3.ListObjectsV2", parse_listing)
            return client

    @property
    def endpoint(self) -> str:
        """Scheme, host and port of the server, without a user name or password that the URL might hold."""
        return without_user(self.once.meta.endpoint_url)

    def store(self, bucket: str) -> "S3Store":
        """obstore's client for one bucket."""
        global _obstore_used
        with self._lock:
            _obstore_used = True
            if bucket not in self._stores:
                self._stores[bucket] = self._new_store(bucket)
            return self._stores[bucket]

    def find_region(self, bucket: str) -> bool:
        """Ask where a bucket is; True when that is news, and its next client will go there."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            region = self.once.head_bucket(Bucket=bucket).get("BucketRegion")
        except (BotoCoreError, ClientError):
            return False  # the first refusal says what is wrong
        with self._lock:
            known = self._regions.get(bucket, self.once.meta.region_name)
            if not region or region == known:
                return False
            self._regions[bucket] = region
            self._stores.pop(bucket, None)
            return True

    def _new_client(self) -> Any:
        from botocore import UNSIGNED
        from botocore.config import Config

        config = Config(
            signature_version=UNSIGNED if self.credentials is None else None,
            retries={"mode": "standard", "total_max_attempts": 1},
            connect_timeout=self.settings.connect_timeout,
            read_timeout=self.settings.read_timeout,
            max_pool_connections=MAX_CONNECTIONS,
            request_checksum_calculation="when_required",  # older gateways refuse the checksums of newer SDKs
            response_checksum_validation="when_required",
        )
        return self._session.client("s3", config=config)

    def _new_store(self, bucket: str) -> "S3Store":
        from obstore.store import S3Store

        region = self._regions.get(bucket) or self.once.meta.region_name or "us-east-1"
        endpoint, in_host_name = self._bucket_endpoint(bucket, region)
        seconds = self.settings
        client_options: ClientConfig = {
            "allow_http": True,
            "connect_timeout": timedelta(seconds=seconds.connect_timeout),
            "read_timeout": timedelta(seconds=seconds.read_timeout),
            "timeout": timedelta(seconds=seconds.request_timeout),
            "pool_max_idle_per_host": str(MAX_CONNECTIONS),
        }
        certificates = _certificates()
        if certificates:
            client_options["root_certificate"] = certificates
        return S3Store(
            bucket,
            # as in the environment, which would win over a plain endpoint
            aws_endpoint_url_s3=endpoint,
            region=region,
            virtual_hosted_style_request=in_host_name,
            skip_signature=self.credentials is None,
            credential_provider=None if self.credentials is None else _provider(self.credentials),
            client_options=client_options,
            retry_config={"max_retries": 0, "retry_timeout": timedelta(0)},  # s3_retry does it for all reads
        )

    def _bucket_endpoint(self, bucket: str, region: str) -> tuple[str, bool]:
        """Where boto3 would send a bucket's requests, and whether it is named in the host instead of the path."""
        from botocore import UNSIGNED
        from botocore.config import Config

        client = self._session.client("s3", region_name=region, config=Config(signature_version=UNSIGNED))
        url = urlsplit(client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "key"}))
        endpoint = without_user(client.meta.endpoint_url)
        if url.path == "/key":  # not that URL's own host, which for AWS is of no region
            scheme, _, host = endpoint.partition("://")
            return f"{scheme}://{bucket}.{host}", True
        return endpoint, False


_accesses: dict[int, Access] = {}  # by process id: a forked process must not use its parent's connections
_accesses_lock = threading.Lock()
_obstore_used = False
_obstore_lost = False


def access() -> Access:
    """This process's clients."""
    with _accesses_lock:
        if os.getpid() not in _accesses:
            _accesses[os.getpid()] = Access()
        return _accesses[os.getpid()]


def forget_clients() -> None:
    """Make the next use of S3 read the environment and ~/.aws again."""
    with _accesses_lock:
        _accesses.clear()


def renew(stale: Access) -> None:
    """Read the credentials again, once for all the threads whose requests were refused with the old ones."""
    with _accesses_lock:
        if _accesses.get(os.getpid()) is stale:
            del _accesses[os.getpid()]


def can_use_obstore() -> bool:
    """False in a process forked from one that has used it: its threads are gone there, and a call would hang."""
    return not _obstore_lost


def describe_access() -> S3Access:
    """Where requests go and where the credentials come from; never the credentials."""
    now = Access()
    found = now.credentials
    return S3Access(
        endpoint=now.endpoint,
        region=new_session().region_name,
        credentials=None if found is None else CREDENTIAL_SOURCES.get(found.method, found.method),
    )


def new_session() -> Any:
    """boto3 itself reads AWS_DEFAULT_REGION only; the other SDKs, and users, say AWS_REGION."""
    import boto3

    return boto3.session.Session(region_name=os.environ.get("AWS_REGION") or None)


def without_user(url: str) -> str:
    """Scheme, host, port and path of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def _provider(credentials: Any) -> Callable[[], Any]:
    """What obstore calls for credentials; boto3 renews those that end before it gives them out."""
    from botocore.credentials import RefreshableCredentials

    ending = isinstance(credentials, RefreshableCredentials)

    def provide() -> dict[str, Any]:
        frozen = credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + CREDENTIALS_LAST if ending else None,
        }

    return provide


def _certificates() -> bytes | None:
    """The certificates that boto3 is told to trust, as PEM."""
    import botocore.session

    path = botocore.session.get_session().get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
    if not path:
        return None
    with open(path, "rb") as file:
        return file.read()


def _after_fork() -> None:
    global _accesses_lock, _obstore_lost
    _accesses_lock = threading.Lock()  # another thread of the parent may have held it
    _obstore_lost = _obstore_lost or _obstore_used


os.register_at_fork(after_in_child=_after_fork)
