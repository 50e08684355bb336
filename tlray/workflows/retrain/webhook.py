"""The outcome of a retraining posted to a URL: bounded in time and tries, and never a reason for anything to fail.

    problem = post(url, {"event": "promoted", ...}, timeout=10)      # None, or one line for a warning

A URL may hold a token, so nothing but its host is ever said of it.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

ATTEMPTS = 3
PAUSE_SECONDS = 1.0  # before the second attempt; twice as long before the third
REPEATED = (408, 425, 429)  # and all from 500 on


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET, without what it says, at a place that nobody has named."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


def post(url: str, content: Mapping[str, Any], *, timeout: float) -> str | None:
    """POST `content` as JSON; why it failed where it did. `timeout`: seconds that each of three attempts may take."""
    opener = urllib.request.build_opener(_NoRedirects)
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            headers = {"Content-Type": "application/json", "User-Agent": "tlray"}
            request = urllib.request.Request(url, json.dumps(content).encode(), headers, method="POST")
            with opener.open(request, timeout=timeout):
                return None
        except urllib.error.HTTPError as error:
            problem = f"answered HTTP {error.code}"
            error.close()
            if error.code < 500 and error.code not in REPEATED:
                break
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: it is no URL
            reason = getattr(error, "reason", error)
            problem = f"gave no answer ({type(reason).__name__})"
    return f"the webhook at {host_of(url)} {problem}"


def host_of(url: str) -> str:
    """The part of a URL that is no secret."""
    try:
        return urlsplit(url).hostname or "an unnamed host"
    except ValueError:
        return "an unnamed host"
