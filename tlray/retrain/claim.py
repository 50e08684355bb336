"""Who retrains: one at a time. A lease in an object beside champion.json, kept alive by a thread of its holder.

    with claim(home) as held:                      # NothingToDo when another one is at work
        ...
        held.check()                               # before anything that others see

No clocks are compared. Whoever finds a lease watches it: a holder that lives rewrites it every few seconds, and one
that has not done so for LEASE_SECONDS by the watcher's own clock is dead. Of several who then take it over one
succeeds, by compare and swap. The same scheme as the lock client of Amazon DynamoDB ("Building distributed locks with
the DynamoDB lock client", AWS, 2017). A holder on this machine whose process is gone is known to be dead at once.
"""

import _thread
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tlray import storage
from tlray.errors import Interrupted, NothingToDo, StorageError, TrialError

FILE = "retrain.lock"
LEASE_SECONDS = 60.0  # a holder that was silent for so long is dead
RENEW_SECONDS = 10.0
WATCH_SECONDS = 1.0  # between looks at somebody else's lease


@dataclass
class Claim:
    """The lease that this process holds, as it last wrote it."""

    uri: str
    data: bytes
    lost: bool = False
    guard: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        """TrialError when another process has taken this one for dead."""
        if self.lost:
            raise TrialError(
                f"{self.uri}: another retraining has taken over, as this one was silent for {LEASE_SECONDS:.0f} s; "
                "what this one has trained is kept"
            )

    def renew(self) -> None:
        """Write the lease anew; a server that does not answer costs nothing until others think the holder dead."""
        with self.guard:
            fresh = _lease()
            try:
                kept = storage.replace(self.uri, self.data, fresh)
            except StorageError:
                return
            self.lost = not kept
            if kept:
                self.data = fresh

    def give_back(self) -> None:
        with self.guard:
            try:
                storage.replace(self.uri, self.data, _lease(released=True))
            except StorageError:
                return  # it runs out; what the block itself raised matters more


@contextmanager
def claim(home: str, lease_seconds: float | None = None) -> Iterator[Claim]:
    """Hold the lease of `home` until the block ends; NothingToDo, after a few seconds, when another process does."""
    held = _take(storage.join(home, FILE), LEASE_SECONDS if lease_seconds is None else lease_seconds)
    ended = threading.Event()

    def keep_renewing() -> None:
        while not ended.wait(RENEW_SECONDS):
            held.renew()
            if held.lost:  # two must not train in one run folder
                _thread.interrupt_main(signal.SIGTERM)  # nothing where nobody handles it: then check() will tell
                return

    thread = threading.Thread(target=keep_renewing, name="tlray-claim", daemon=True)
    thread.start()
    try:
        yield held
    except Interrupted:
        held.check()
        raise
    finally:
        ended.set()
        thread.join()
        held.give_back()


def _take(uri: str, lease_seconds: float) -> Claim:
    mine = _lease()
    if storage.create_exclusive(uri, mine):
        return Claim(uri, mine)
    found = storage.read_bytes(uri)
    fields = _parse(found)
    if not _is_free(fields) and not _stays_silent(uri, found, lease_seconds):
        raise NothingToDo(f"another retraining is at work ({_who(fields)}): {uri}")
    if not storage.replace(uri, found, mine):
        raise NothingToDo(f"another retraining has just begun: {uri}")
    return Claim(uri, mine)


def _stays_silent(uri: str, found: bytes, lease_seconds: float) -> bool:
    deadline = time.monotonic() + lease_seconds
    while time.monotonic() < deadline:
        time.sleep(min(WATCH_SECONDS, lease_seconds / 4))
        if storage.read_bytes(uri) != found:
            return False
    return True


def _lease(*, released: bool = False) -> bytes:
    """Different every time, as compare and swap needs it."""
    process = psutil.Process()
    fields = {
        "host": socket.gethostname(),
        "place": _place(),
        "process": process.pid,
        "started": process.create_time(),
        "released": released,
        "mark": secrets.token_hex(8),
    }
    return json.dumps(fields).encode()


def _is_free(fields: dict[str, Any]) -> bool:
    """Given back, or held by a process of this machine and container that is gone."""
    if fields.get("released"):
        return True
    if not _place() or fields.get("place") != _place():
        return False
    try:
        return psutil.Process(int(fields["process"])).create_time() != fields["started"]
    except psutil.NoSuchProcess:
        return True
    except (KeyError, TypeError, ValueError, psutil.Error):
        return False


def _place() -> str:
    """Within which process ids mean something: this start of the machine, this container; "" where that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _parse(data: bytes) -> dict[str, Any]:
    """Of what is no lease, nothing: it is then watched like any other."""
    try:
        fields = json.loads(data)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _who(fields: dict[str, Any]) -> str:
    return f"process {fields.get('process', '?')} on {fields.get('host', '?')}"
