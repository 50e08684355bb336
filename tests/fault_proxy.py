"""An HTTP proxy in front of an S3 server that spoils some of the answers, for tests of what a bad network does.

    with fault_proxy(server.endpoint) as proxy:
        proxy.spoil(slow_down, times=3, path="/bucket/object")
        ...                                # requests to proxy.endpoint: three get 503, those after it the object
        proxy.seen("/bucket/object")       # how many requests there were

A fault is a function of the connection and of the server's own answer, which it sends on as badly as it likes. Requests
pass on as they are, Host header included, so that their signatures hold.
"""

import contextlib
import http.client
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

HOP_BY_HOP = ("connection", "keep-alive", "expect", "transfer-encoding", "content-length")
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER without waiting


@dataclass
class Answer:
    """What the server said; `length` is what the header will announce."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    length: int


Fault = Callable[["Connection", Answer], None]


@dataclass
class _Rule:
    """A fault, and the requests that are still to meet it."""

    fault: Fault
    path: re.Pattern[str]
    method: str
    remaining: float


class Connection(BaseHTTPRequestHandler):
    """One client's connection: forwards each request and hands the answer to the fault that is due, if any."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        rule = self.server.proxy.rule_for(self.command, self.path)
        if rule is not None and rule.fault in BEFORE_THE_SERVER:
            rule.fault(self, Answer(0, [], b"", 0))
            return
        answer = self._ask_server(body)
        if rule is None:
            self.send(answer)
        else:
            rule.fault(self, answer)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

    def send(self, answer: Answer) -> None:
        self.send_head(answer)
        self.wfile.write(answer.body)

    def send_head(self, answer: Answer) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(answer.length))
        self.end_headers()

    def end(self) -> None:
        """Close the connection when the request is done with."""
        self.close_connection = True

    def wait_for_the_client_to_leave(self, seconds: float | None = None) -> bool:
        """Whether it left, or the proxy is stopping, within that time."""
        if self.server.proxy.stopping.is_set():
            return True
        self.connection.settimeout(seconds)
        try:
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    def _ask_server(self, body: bytes) -> Answer:
        upstream = http.client.HTTPConnection(self.server.proxy.upstream, timeout=60)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_BY_HOP:
                upstream.putheader(name, value)
        upstream.putheader("Content-Length", str(len(body)))
        upstream.endheaders(body)
        response = upstream.getresponse()
        content = response.read()
        upstream.close()
        headers = [(name, value) for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP]
        length = int(response.getheader("Content-Length") or 0) if self.command == "HEAD" else len(content)
        return Answer(response.status, headers, content, length)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def reset(connection: Connection, answer: Answer) -> None:
    """The connection is reset before the answer."""
    connection.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    connection.end()


def reset_half_way(connection: Connection, answer: Answer) -> None:
    """The connection is reset after half of the body."""
    connection.send_head(answer)
    connection.wfile.write(answer.body[: len(answer.body) // 2])
    reset(connection, answer)


def truncated(connection: Connection, answer: Answer) -> None:
    """The connection is closed in good order after half of the body that was announced."""
    connection.send_head(answer)
    connection.wfile.write(answer.body[: len(answer.body) // 2])
    connection.end()


def announced_too_long(connection: Connection, answer: Answer) -> None:
    """The header announces more than there is."""
    answer.length += 100
    connection.send(answer)
    connection.end()


def announced_too_short(connection: Connection, answer: Answer) -> None:
    """The header announces half of what follows."""
    answer.length //= 2
    with contextlib.suppress(OSError):  # a client that has what was announced may hang up
        connection.send(answer)
    connection.end()


def cut_short(connection: Connection, answer: Answer) -> None:
    """Half of the body, announced as such: only Content-Range and the client's own arithmetic can tell."""
    answer.body = answer.body[: len(answer.body) // 2]
    answer.length = len(answer.body)
    connection.send(answer)


def stalled(connection: Connection, answer: Answer) -> None:
    """Half of the body, then nothing more for as long as the client waits."""
    connection.send_head(answer)
    connection.wfile.write(answer.body[: len(answer.body) // 2])
    connection.wait_for_the_client_to_leave()
    connection.end()


def silent(connection: Connection, answer: Answer) -> None:
    """No answer at all for as long as the client waits."""
    connection.wait_for_the_client_to_leave()
    connection.end()


def dripping(connection: Connection, answer: Answer) -> None:
    """A byte 20 times a second: never silent for long, and never done."""
    connection.send_head(answer)
    for index in range(len(answer.body)):
        with contextlib.suppress(OSError):
            connection.wfile.write(answer.body[index : index + 1])
        if connection.wait_for_the_client_to_leave(0.05):
            break
    connection.end()


def _error(status: int, code: str) -> Fault:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>spoilt</Message></Error>'.encode()

    def answer_error(connection: Connection, answer: Answer) -> None:
        connection.send(Answer(status, [("Content-Type", "application/xml")], body, len(body)))

    return answer_error


slow_down = _error(503, "SlowDown")
internal_error = _error(500, "InternalError")
expired_token = _error(403, "ExpiredToken")
access_denied = _error(403, "AccessDenied")
missing = _error(404, "NoSuchKey")


def ignoring_ranges(data: bytes) -> Fault:
    """A server that answers a ranged request with the whole object, as some gateways do."""

    def answer_whole(connection: Connection, answer: Answer) -> None:
        headers = [(name, value) for name, value in answer.headers if name.lower() != "content-range"]
        connection.send(Answer(200, headers, data, len(data)))

    return answer_whole


def first(action: Callable[[], object]) -> Fault:
    """Do something, then let the answer pass that was the server's before it."""

    def answer_after(connection: Connection, answer: Answer) -> None:
        action()
        connection.send(answer)

    return answer_after


BEFORE_THE_SERVER = (reset, silent, slow_down, internal_error, expired_token, access_denied, missing)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    proxy: "FaultProxy"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what this is for."""


@dataclass
class FaultProxy:
    """The proxy while it runs; all its methods may be called from any thread."""

    upstream: str  # host and port of the server
    endpoint: str = ""
    stopping: threading.Event = field(default_factory=threading.Event)
    _rules: list[_Rule] = field(default_factory=list)
    _requests: list[tuple[str, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def spoil(self, fault: Fault, times: float = float("inf"), path: str = "", method: str = "GET") -> None:
        """The next `times` requests of this method whose path and query match (re.search) meet the fault."""
        with self._lock:
            self._rules.append(_Rule(fault, re.compile(path), method, times))

    def heal(self) -> None:
        """No more faults."""
        with self._lock:
            self._rules.clear()

    def seen(self, path: str = "", method: str = "GET") -> int:
        """How many requests of this method there were whose path and query match."""
        with self._lock:
            return sum(one == method and re.search(path, where) is not None for one, where in self._requests)

    def rule_for(self, method: str, path: str) -> _Rule | None:
        with self._lock:
            self._requests.append((method, path))
            for rule in self._rules:
                if rule.remaining > 0 and rule.method == method and rule.path.search(path):
                    rule.remaining -= 1
                    return rule
        return None


@contextmanager
def fault_proxy(endpoint: str) -> Iterator[FaultProxy]:
    """A proxy on a free port of 127.0.0.1 in front of `endpoint`, without faults at first."""
    server = _Server(("127.0.0.1", 0), Connection)
    proxy = FaultProxy(urlsplit(endpoint).netloc, f"http://127.0.0.1:{server.server_address[1]}")
    server.proxy = proxy
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()
