"""The fault matrix of the object store: what a bad network or server does to reads, and how each case ends.

Every fault comes from the proxy in tests/fault_proxy.py. What may pass is tried again and the bytes are right; what
does not pass ends in bounded time with one clear line; wrong bytes are never returned.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fault_proxy
import pytest
from fault_proxy import FaultProxy

from tlray import storage
from tlray.errors import StorageError, UnreachableError
from tlray.storage import s3_settings

pytestmark = pytest.mark.s3

DATA = bytes(range(256)) * 200
SETTINGS = {"ATTEMPTS": "3", "BACKOFF": "0.01", "CONNECT_TIMEOUT": "2", "READ_TIMEOUT": "0.5", "REQUEST_TIMEOUT": "1.5"}
AT_MOST = 20  # seconds for what the settings bound to less than 6, on a machine that is busy with other things

PASSING = [
    fault_proxy.reset,
    fault_proxy.reset_half_way,
    fault_proxy.slow_down,
    fault_proxy.internal_error,
    fault_proxy.silent,
    fault_proxy.stalled,
    fault_proxy.dripping,
    fault_proxy.truncated,
    fault_proxy.announced_too_long,
    fault_proxy.announced_too_short,
    fault_proxy.cut_short,
]
READS = {
    "read_bytes": lambda uri: storage.read_bytes(uri),
    "read_range": lambda uri: storage.read_range(uri, 0, len(DATA)),
    "open_file": lambda uri: storage.open_file(uri).read(),
}
SLOW = (fault_proxy.silent, fault_proxy.stalled, fault_proxy.dripping)  # seconds each, so one kind of read will do
PASSING_READS = [(fault, read) for fault in PASSING for read in READS if read == "read_bytes" or fault not in SLOW]


def by_name(value: Any) -> str | None:
    return getattr(value, "__name__", None)


@pytest.fixture
def proxy(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy in front of the test server that everything in this process goes through."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(f"TLRAY_S3_{name}", value)
    with fault_proxy.fault_proxy(s3.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        storage.forget_clients()
        storage.write_bytes(f"{s3.uri}/object", DATA)
        yield running
        storage.forget_clients()


@pytest.fixture
def uri(s3: Any, proxy: FaultProxy) -> str:
    return f"{s3.uri}/object"


@pytest.mark.parametrize(("fault", "read"), PASSING_READS, ids=by_name)
def test_a_fault_that_passes_is_not_noticed(fault: Any, read: str, uri: str, proxy: FaultProxy) -> None:
    before = proxy.seen("/object")
    proxy.spoil(fault, times=2)
    assert READS[read](uri) == DATA
    assert proxy.seen("/object") - before == 3


@pytest.mark.parametrize("fault", PASSING, ids=by_name)
def test_a_fault_that_stays_ends_in_one_line_in_bounded_time(fault: Any, uri: str, proxy: FaultProxy) -> None:
    proxy.spoil(fault)
    before, begun = proxy.seen("/object"), time.monotonic()
    with pytest.raises(StorageError, match=f"^{uri}: {proxy.endpoint} ") as caught:
        storage.read_bytes(uri)
    assert time.monotonic() - begun < AT_MOST
    assert proxy.seen("/object") - before == 3
    assert "3 attempts" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert type(caught.value) is UnreachableError


def test_throttling_is_named_with_its_remedy(uri: str, proxy: FaultProxy) -> None:
    proxy.spoil(fault_proxy.slow_down)
    with pytest.raises(StorageError, match=r"answered SlowDown \(HTTP 503\).*: try later, or with fewer requests"):
        storage.read_bytes(uri)


def test_a_burst_of_throttling_passes_for_many_threads_at_once(s3: Any, uri: str, proxy: FaultProxy) -> None:
    uris = [f"{s3.uri}/many/{index}" for index in range(24)]
    for index, one in enumerate(uris):
        storage.write_bytes(one, DATA[index:])
    proxy.spoil(fault_proxy.slow_down, times=1, path="/many/1")
    proxy.spoil(fault_proxy.slow_down, times=2, path="/many/2$")
    proxy.spoil(fault_proxy.reset, times=1, path="/many/3")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(storage.read_bytes, uris)) == [DATA[index:] for index in range(24)]


def test_the_total_time_bounds_the_attempts(uri: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLRAY_S3_ATTEMPTS", "1000")
    monkeypatch.setenv("TLRAY_S3_TOTAL_TIMEOUT", "0.3")
    storage.forget_clients()
    proxy.spoil(fault_proxy.slow_down)
    begun = time.monotonic()
    with pytest.raises(StorageError, match="SlowDown"):
        storage.read_bytes(uri)
    assert time.monotonic() - begun < AT_MOST
    assert proxy.seen("/object") < 100


@pytest.mark.parametrize("write", ["write_bytes", "create_exclusive", "replace", "delete", "upload_folder"])
def test_a_write_outlasts_more_failures_than_there_were_ever_attempts_where_there_is_time(
    write: str, s3: Any, uri: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(s3_settings, "_patient", False)
    monkeypatch.delenv("TLRAY_S3_ATTEMPTS")
    storage.be_patient()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "new").write_bytes(DATA)
    method = "DELETE" if write == "delete" else "PUT"
    proxy.spoil(fault_proxy.slow_down, times=8, method=method)
    writes = {
        "write_bytes": lambda: storage.write_bytes(f"{s3.uri}/new", DATA),
        "create_exclusive": lambda: storage.create_exclusive(f"{s3.uri}/new", DATA),
        "replace": lambda: storage.replace(uri, DATA, DATA[::-1]),
        "delete": lambda: storage.delete(uri),
        "upload_folder": lambda: storage.upload_folder(tmp_path / "folder", s3.uri),
    }
    before = proxy.seen(method=method)
    writes[write]()
    assert proxy.seen(method=method) - before >= 9  # one more where the first form of a condition is refused
    if write == "delete":
        assert not storage.exists(uri)
    else:
        changed, wanted = (uri, DATA[::-1]) if write == "replace" else (f"{s3.uri}/new", DATA)
        assert storage.read_bytes(changed) == wanted


@pytest.mark.parametrize(
    "fault",
    [fault_proxy.truncated, fault_proxy.cut_short, fault_proxy.announced_too_short, fault_proxy.announced_too_long],
    ids=by_name,
)
def test_a_part_of_a_large_object_that_is_not_whole_is_fetched_again(
    fault: Any, s3: Any, uri: str, proxy: FaultProxy
) -> None:
    large = os.urandom(20 * 2**20)
    storage.write_bytes(f"{s3.uri}/large", large)
    proxy.spoil(fault, times=2, path="/large")
    assert storage.read_bytes(f"{s3.uri}/large") == large
    assert proxy.seen("/large") == 3 + 2


def test_a_download_survives_what_passes(s3: Any, uri: str, proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.spoil(fault_proxy.reset_half_way, times=1)
    proxy.spoil(fault_proxy.cut_short, times=1)
    storage.download(uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA


def test_credentials_that_expire_in_mid_run_are_read_anew(
    s3: Any, uri: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where a tool rewrites ~/.aws/credentials every hour."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    text = "[default]\naws_access_key_id = {AWS_ACCESS_KEY_ID}\naws_secret_access_key = {AWS_SECRET_ACCESS_KEY}\n"
    (tmp_path / "credentials").write_text(text.format(**s3.environment).replace("default]", "default]\n# first"))
    storage.forget_clients()
    assert storage.read_bytes(uri) == DATA
    proxy.spoil(fault_proxy.expired_token, times=1)
    assert storage.read_bytes(uri) == DATA
    proxy.spoil(fault_proxy.expired_token, times=1, path="list-type")
    assert [info.uri for info in storage.list_files(s3.uri)] == [uri]


def test_expired_credentials_end_at_once_when_there_are_no_newer_ones(uri: str, proxy: FaultProxy) -> None:
    proxy.spoil(fault_proxy.expired_token)
    before = proxy.seen("/object")
    said = rf"^{uri}: the credentials have expired, says {proxy.endpoint} \(ExpiredToken\), and no newer ones are found"
    with pytest.raises(StorageError, match=said):
        storage.read_bytes(uri)
    assert proxy.seen("/object") - before == 2


def test_a_denial_in_mid_run_is_not_repeated(uri: str, proxy: FaultProxy) -> None:
    assert storage.read_bytes(uri) == DATA
    proxy.spoil(fault_proxy.access_denied)
    before = proxy.seen("/object")
    with pytest.raises(StorageError, match=r"access denied by .* \(AccessDenied\); the credentials lack"):
        storage.read_bytes(uri)
    assert proxy.seen("/object") - before == 1


@pytest.mark.parametrize("read", READS)
def test_an_object_that_vanished_is_said_to_be_missing(read: str, uri: str) -> None:
    (info,) = storage.list_files(uri.rpartition("/")[0])
    storage.delete(uri)
    with pytest.raises(storage.NotFoundError, match=f"^{re.escape(uri)} does not exist$"):
        READS[read](uri)
    with pytest.raises(storage.NotFoundError):
        storage.read_bytes(uri, info.version)


def test_an_object_that_changed_is_said_to_have_changed(uri: str) -> None:
    (info,) = storage.list_files(uri.rpartition("/")[0])
    assert storage.read_bytes(uri, info.version) == DATA
    assert storage.read_range(uri, 10, 20, info.version) == DATA[10:30]
    storage.write_bytes(uri, DATA[::-1])
    for read in (lambda: storage.read_bytes(uri, info.version), lambda: storage.read_range(uri, 0, 9, info.version)):
        with pytest.raises(
            storage.ChangedError, match=f"^{uri} has changed since it was listed .version {info.version} "
        ):
            read()


def test_a_server_that_ignores_the_condition_is_found_out_by_its_etag(uri: str, proxy: FaultProxy) -> None:
    (info,) = storage.list_files(uri.rpartition("/")[0])

    def without_condition(connection: Any, answer: Any) -> None:
        connection.send(fault_proxy.Answer(206, [("ETag", '"other"'), ("Content-Range", "bytes 0-2/3")], b"new", 3))

    proxy.spoil(without_condition)
    with pytest.raises(storage.ChangedError, match="other now"):
        storage.read_bytes(uri, info.version)


def test_parts_of_two_versions_are_never_put_together(s3: Any, uri: str, proxy: FaultProxy) -> None:
    large = f"{s3.uri}/large"
    old, new = (bytes([value]) * (20 * 2**20) for value in b"ab")
    storage.write_bytes(large, old)
    (info,) = (
        storage.list_files(f"{s3.uri}/") if False else [one for one in storage.list_files(s3.uri) if one.uri == large]
    )
    proxy.spoil(fault_proxy.first(lambda: storage.write_bytes(large, new)), times=1, path="/large")
    assert storage.read_bytes(large) == new
    storage.write_bytes(large, old)
    proxy.spoil(fault_proxy.first(lambda: storage.write_bytes(large, new)), times=1, path="/large")
    with pytest.raises(storage.ChangedError):
        storage.read_bytes(large, info.version)


def test_a_file_that_is_replaced_while_it_is_open_is_said_to_have_changed(s3: Any, uri: str) -> None:
    large = f"{s3.uri}/large"
    storage.write_bytes(large, b"a" * 2**20)
    with storage.open_file(large) as file:
        assert file.read(3) == b"aaa"
        storage.write_bytes(large, b"b" * 2**20)
        file.seek(-3, os.SEEK_END)
        with pytest.raises(storage.ChangedError):
            file.read()


@pytest.mark.parametrize("num_threads", [1, 4])
def test_a_listing_survives_what_passes(num_threads: int, s3: Any, proxy: FaultProxy) -> None:
    for name in ("a/1", "b/2", "c"):
        storage.write_bytes(f"{s3.uri}/images/{name}", b"")
    for fault in (fault_proxy.reset, fault_proxy.slow_down, fault_proxy.truncated, fault_proxy.cut_short):
        proxy.spoil(fault, times=1, path="list-type")
        listed = [info.uri for info in storage.list_files(f"{s3.uri}/images", num_threads)]
        assert listed == [f"{s3.uri}/images/{name}" for name in ("a/1", "b/2", "c")]


def test_a_listing_that_stays_broken_ends_in_one_line(s3: Any, proxy: FaultProxy) -> None:
    proxy.spoil(fault_proxy.slow_down, path="list-type")
    with pytest.raises(StorageError, match=rf"^{s3.uri}: .* answered SlowDown \(HTTP 503\)"):
        list(storage.list_files(s3.uri))
    assert proxy.seen("list-type") == 3


def test_a_server_that_knows_no_ranges_is_read_all_the_same(uri: str, proxy: FaultProxy) -> None:
    proxy.spoil(fault_proxy.ignoring_ranges(DATA))
    assert storage.read_bytes(uri) == DATA
    assert storage.read_range(uri, 100, 50) == DATA[100:150]


def test_a_process_ends_that_gives_up_a_long_table_on_a_slow_store(s3: Any, proxy: FaultProxy) -> None:
    """Arrow reads CSV ahead in a thread of its own; one that needs Python for it hangs or aborts an ending process."""
    rows = "".join(f"{number:06}.jpg,{'cat' * (number != 70_000)}\n" for number in range(1_000_000))
    storage.write_text(f"{s3.uri}/images.csv", f"uri,label\n{rows}")
    program = """
import sys
from tlray.config import DataConfig
from tlray.data.sources.detect import open_source
list(open_source("data.train", sys.argv[1], DataConfig(train=sys.argv[1])).entries())
"""
    proxy.spoil(fault_proxy.first(lambda: time.sleep(0.3)), path="/images.csv")
    done = subprocess.run(
        [sys.executable, "-c", program, f"{s3.uri}/images.csv"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "row 70001 of" in done.stderr.splitlines()[-1]
    assert done.stderr.endswith("has no label\n")
