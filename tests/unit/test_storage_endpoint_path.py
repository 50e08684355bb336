"""An S3 endpoint with a path, http://host/s3: boto3, obstore and pyarrow all send their requests below it."""

import http.server
import threading
from collections.abc import Iterator

import pytest

from tlray import storage

LISTING = b"""<?xml version="1.0"?><ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated>
<Contents><Key>folder/file</Key><Size>5</Size><ETag>"e"</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified>
</Contents></ListBucketResult>"""


class _Gateway(http.server.BaseHTTPRequestHandler):
    """As much of S3 as the test needs, below /s3; keeps the path of every request."""

    paths: list[tuple[str, str]]

    def _answer(self, data: bytes) -> None:
        self.paths.append((self.command, self.path))
        below = self.path.startswith("/s3/bucket")
        if "list-type" in self.path:
            data = LISTING
        ranged = "Range" in self.headers
        self.send_response(404 if not below else 206 if ranged else 200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        if ranged:
            self.send_header("Content-Range", f"bytes 0-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self) -> None:
        self._answer(b"hello")

    def do_HEAD(self) -> None:
        self._answer(b"hello")

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(b"")

    def log_message(self, *words: object) -> None: ...


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """(method, path) of the requests that the gateway has had."""
    _Gateway.paths = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Gateway) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}/s3")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.delenv("AWS_PROFILE", raising=False)
        storage.forget_clients()
        yield _Gateway.paths
        server.shutdown()
    storage.forget_clients()


def test_every_client_keeps_the_endpoints_path(paths: list[tuple[str, str]]) -> None:
    assert storage.read_bytes("s3://bucket/folder/file") == b"hello"
    storage.write_bytes("s3://bucket/folder/file", b"hello")
    assert [info.uri for info in storage.list_files("s3://bucket/folder")] == ["s3://bucket/folder/file"]
    before = len(paths)
    filesystem, path = storage.pyarrow_filesystem("s3://bucket/folder")
    assert filesystem.get_file_info(f"{path}/file").size == 5
    assert len(paths) > before
    assert [one for one in paths if not one[1].startswith("/s3/bucket")] == []
