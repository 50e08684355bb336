"""Who works on a run, or retrains: one at a time. A lease in an object, kept alive by a thread of its holder.

    with hold_run(run_uri, "tlray resume") as held:      # HeldElsewhere when another process does
        ...
        held.check()                                     # before anything that others see

No clocks are compared. Whoever finds a lease watches it: a holder that lives rewrites it every few seconds, and one
that has not done so for LEASE_SECONDS by the watcher's own clock is dead. Of several who then take it over one
succeeds, by compare and swap. The same scheme as the lock client of Amazon DynamoDB ("Building distributed locks with
the DynamoDB lock client", AWS, 2017). On one machine nobody waits: a process that is gone, by its number and its start,
holds nothing, and one that runs is believed at once.

A holder that was paused for longer (SIGSTOP, a frozen machine) finds its lease taken when it wakes up, with its next
renewal, and is interrupted. What it was writing at that moment may still arrive.
"""

import json
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tlray import storage
from tlray.errors import HeldElsewhere, StorageError, TrialError
from tlray.process.ending import stop
from tlray.process.processes import Process, is_stopped, lives, this_process

RUN_FILE = "lease.json"
LEASE_SECONDS = 60.0  # a holder that was silent for so long is dead
RENEW_SECONDS = 5.0
WATCH_SECONDS = 1.0  # between looks at somebody else's lease


@dataclass
class Lease:
    """The lease that this process holds, as it last wrote it."""

    uri: str
    by: str  # what holds it, for people
    since: float
    data: bytes
    lost: bool = False
    guard: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        """TrialError when another process has taken this one for dead."""
        if self.lost:
            raise TrialError(self.loss)

    @property
    def loss(self) -> str:
        """What to say where it was lost."""
        return (
            f"{self.uri}: another process has taken over, as this one was silent for {LEASE_SECONDS:.0f} s; "
            "what this one has trained is kept"
        )

    def renew(self) -> None:
        """Write the lease anew; a server that does not answer costs nothing until others think the holder dead."""
        with self.guard:
            fresh = _lease(self.by, self.since)
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
                storage.replace(self.uri, self.data, _lease(self.by, self.since, released=True))
            except StorageError:
                return  # it runs out; what the block itself raised matters more


def hold_run(run_uri: str, by: str) -> AbstractContextManager[Lease]:
    """The lease of a run folder, which must be one; `by`: the command, for whoever finds it held."""
    return hold(storage.join(run_uri, RUN_FILE), by)


@contextmanager
def hold(uri: str, by: str, lease_seconds: float | None = None) -> Iterator[Lease]:
    """Hold a lease until the block ends; HeldElsewhere, after a few seconds at most, when another process does."""
    held = _take(uri, by, LEASE_SECONDS if lease_seconds is None else lease_seconds)
    ended = threading.Event()

    def keep_renewing() -> None:
        while not ended.wait(RENEW_SECONDS):
            held.renew()
            if held.lost:  # two must not write to one folder
                _stop_working(held)
                return

    thread = threading.Thread(target=keep_renewing, name="tlray-lease", daemon=True)
    thread.start()
    try:
        yield held
    except BaseException:
        held.check()  # why it was interrupted
        raise
    finally:
        ended.set()
        thread.join()
        held.give_back()


def _stop_working(held: Lease) -> None:
    """A command ends with one line; whoever else holds a lease is interrupted as by Ctrl+C, also while it waits."""
    if not stop(1, held.loss) and callable(signal.getsignal(signal.SIGINT)):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _take(uri: str, by: str, lease_seconds: float) -> Lease:
    since = time.time()
    mine = _lease(by, since)
    if storage.create_exclusive(uri, mine):
        return Lease(uri, by, since, mine)
    found = storage.read_bytes(uri)
    fields = _parse(found)
    if not _is_free(fields) and (_is_at_work(fields) or not _stays_silent(uri, found, lease_seconds)):
        raise HeldElsewhere(f"{_who(fields)}: wait until it ends, or stop it ({uri})")
    if not storage.replace(uri, found, mine):
        raise HeldElsewhere(f"{_who(_parse(storage.read_bytes(uri)))}: wait until it ends, or stop it ({uri})")
    return Lease(uri, by, since, mine)


def _stays_silent(uri: str, found: bytes, lease_seconds: float) -> bool:
    deadline = time.monotonic() + lease_seconds
    while time.monotonic() < deadline:
        time.sleep(min(WATCH_SECONDS, lease_seconds / 4))
        if storage.read_bytes(uri) != found:
            return False
    return True


def _lease(by: str, since: float, *, released: bool = False) -> bytes:
    """Different every time, as compare and swap needs it."""
    process = this_process()
    fields = {
        "by": by,
        "host": socket.gethostname(),
        "process": process.number,
        "since": since,
        "place": process.place,
        "started": process.started,
        "released": released,
        "mark": secrets.token_hex(8),
    }
    return json.dumps(fields, indent=1).encode()


def _is_free(fields: dict[str, Any]) -> bool:
    """Given back, or held by a process of this machine and container that is gone."""
    if fields.get("released") is True:
        return True
    process = _process(fields)
    return process is not None and lives(process) is False


def _is_at_work(fields: dict[str, Any]) -> bool:
    """Whether another process of this machine holds it and runs; one that was stopped is watched like a distant one."""
    process = _process(fields)
    if process is None or process == this_process():
        return False
    return lives(process) is True and not is_stopped(process)


def _process(fields: dict[str, Any]) -> Process | None:
    place, number, started = (fields.get(name) for name in ("place", "process", "started"))
    if isinstance(place, str) and isinstance(number, int) and isinstance(started, int):
        return Process(place=place, number=number, started=started)
    return None


def _parse(data: bytes) -> dict[str, Any]:
    """Of what is no lease, nothing: it is then watched like any other."""
    try:
        fields = storage.parse_json(data)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _who(fields: dict[str, Any]) -> str:
    since = fields.get("since")
    words = f" since {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(since))} UTC" if isinstance(since, float) else ""
    who = f"process {fields.get('process', '?')} on {fields.get('host', '?')}"
    return f"{fields.get('by') or 'another process'} is at work here already ({who}{words})"
