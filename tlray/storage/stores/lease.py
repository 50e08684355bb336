"""Leases: what a run uses is not evicted; when the run dies, its leases run out by themselves.

    with lease("run-7", [folder, …]):                       # renewed by a thread
        …
    holders(folder)                                         # ("run-7",)

A lease is a small file that says when it expires. Every holder has a file of its own, so that processes of one run, or
nested blocks of one process, do not end each other's.
"""

import json
import re
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tlray import storage
from tlray.errors import StorageError
from tlray.storage.stores.folder import ShardFolder, for_each, list_or_none, read_or_none

LEASE_SECONDS = 15 * 60.0  # a dead run protects what it used that long; clocks may differ by less
RENEW_SECONDS = 60.0


@contextmanager
def lease(run_id: str, folders: Sequence[ShardFolder]) -> Iterator[None]:
    """Hold a lease on each folder until the block ends. StorageError when it cannot be taken in the first place."""
    name = f"{re.sub('[^A-Za-z0-9_-]', '_', run_id)}.{secrets.token_hex(4)}.json"
    uris = [storage.join(folder.leases, name) for folder in dict.fromkeys(folders)]
    remote = any(storage.is_remote(uri) for uri in uris)

    def renew(uri: str) -> None:
        storage.write_text(uri, json.dumps({"run": run_id, "expires": time.time() + LEASE_SECONDS}))

    for_each(renew, uris, remote=remote)
    ended = threading.Event()

    def keep_renewing() -> None:
        while not ended.wait(RENEW_SECONDS):
            try:
                for_each(renew, uris, remote=remote)
            except StorageError:
                continue  # the lease holds for many more renewals; should it run out, readers find what is gone

    thread = threading.Thread(target=keep_renewing, name="tlray-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()  # or a renewal under way would bring the file back
        for_each(_give_back, uris, remote=remote)


def holders(folder: ShardFolder) -> tuple[str, ...]:
    """The runs whose leases have not expired, sorted. A lease that cannot be read does not count."""
    uris = [file.uri for file in list_or_none(folder.leases) if file.uri.endswith(".json")]
    found = for_each(_holder, uris, remote=storage.is_remote(folder.uri))
    return tuple(sorted({run for run in found if run is not None}))


def _holder(uri: str) -> str | None:
    data = read_or_none(uri)
    try:
        fields = storage.parse_json(data or b"null")
        return str(fields["run"]) if float(fields["expires"]) > time.time() else None
    except (ValueError, TypeError, KeyError):
        return None


def _give_back(uri: str) -> None:
    try:
        storage.delete(uri)
    except StorageError:
        return  # it expires; what the block itself raised matters more
