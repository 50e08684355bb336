"""The webhook against a server of this process: what it says, how often it tries, and that no URL is given away."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tlray.config import RunConfig
from tlray.config.file import dump_config, parse_config
from tlray.errors import ConfigError
from tlray.workflows.retrain import webhook
from tlray.workflows.retrain.webhook import host_of, post

TOKEN = "T0KEN"


@dataclass
class Hook:
    url: str = ""
    answers: list[int] = field(default_factory=list)  # one for each request; then 200
    bodies: list[object] = field(default_factory=list)


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    monkeypatch.setattr(webhook, "PAUSE_SECONDS", 0.001)
    found = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status = found.answers.pop(0) if found.answers else 200
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}/services/{TOKEN}"
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_content_arrives_as_json_once(hook: Hook) -> None:
    assert post(hook.url, {"event": "promoted", "champion": 3}, timeout=5) is None
    assert hook.bodies == [{"event": "promoted", "champion": 3}]


def test_a_server_in_trouble_is_tried_again_three_times_in_all(hook: Hook) -> None:
    hook.answers = [503, 429]
    assert post(hook.url, {}, timeout=5) is None
    hook.answers = [500, 500, 500]
    assert post(hook.url, {}, timeout=5) == "the webhook at 127.0.0.1 answered HTTP 500"
    assert len(hook.bodies) == 6


@pytest.mark.parametrize("status", [302, 400, 403, 404])
def test_a_refusal_and_a_redirect_are_final(hook: Hook, status: int) -> None:
    hook.answers = [status]
    problem = post(hook.url, {}, timeout=5)
    assert problem == f"the webhook at 127.0.0.1 answered HTTP {status}"
    assert len(hook.bodies) == 1


def test_nobody_there_is_a_warning_without_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "PAUSE_SECONDS", 0.001)
    problem = post(f"http://127.0.0.1:9/{TOKEN}", {}, timeout=1)
    assert problem is not None
    assert "gave no answer" in problem
    assert TOKEN not in problem


@pytest.mark.parametrize(
    ("url", "host"), [(f"https://u:{TOKEN}@h.example/x?y=1", "h.example"), (f"http://[{TOKEN}", "an unnamed host")]
)
def test_only_the_host_is_told(url: str, host: str) -> None:
    assert host_of(url) == host


def test_what_is_no_url_at_all_is_a_warning_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "PAUSE_SECONDS", 0.001)
    problem = post(f"http://[{TOKEN}", {}, timeout=1)
    assert problem is not None
    assert TOKEN not in problem


def config(webhook_url: str) -> RunConfig:
    return RunConfig.model_validate(
        {"name": "x", "data": {"train": "x"}, "backbones": ["timm/a"], "retrain": {"webhook": webhook_url}}
    )


def test_a_run_folder_never_holds_the_url() -> None:
    text = dump_config(config(f"https://h.example/{TOKEN}"))
    assert TOKEN not in text
    assert TOKEN not in repr(config(f"https://h.example/{TOKEN}"))
    assert parse_config(text).retrain.webhook is None


def test_a_webhook_that_is_no_url_is_refused_without_quoting_it() -> None:
    text = f"name: x\ndata: {{train: x}}\nbackbones: [timm/a]\nretrain: {{webhook: {TOKEN}}}"
    with pytest.raises(ConfigError, match="webhook is not an http") as refused:
        parse_config(text)
    assert TOKEN not in str(refused.value)
