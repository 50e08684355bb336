"""A Ray of a command's own on this machine: for this user, reached from this machine only, gone with the command.

start_local_ray()

Everything of it listens on 127.0.0.1 and asks for a token that only its processes know. Its files lie in a folder that
nobody else may enter. Workers find credentials in the environment that they inherit.
"""

import atexit
import fcntl
import logging
import os
import secrets
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import ray

from tlray.distributed.private_ray import dead_part, on_loopback, without_signal_handlers
from tlray.errors import TlrayError
from tlray.process.ending import at_hard_end
from tlray.process.process_tree import ProcessTree

PREFIX = "tlray-ray-"
LONGEST_PATH = 107  # bytes, of a socket
# Ray's folder, its session's and a socket's name, with the longest process id there is
BELOW = len("/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.10")
SECONDS_TO_TAKE_HOLD = 60.0  # of a folder that was just made
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # by default 15: a machine of one's own works for its owner's other programs first
}


def start_local_ray() -> ProcessTree:
    """`ray.init` of a new Ray -> its processes. TlrayError where its folder cannot be made; else what Ray raises."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else it would be kept in the home folder
    folder = _private_folder()
    tree = ProcessTree()
    at_hard_end(partial(_end_at_once, tree, folder))
    atexit.register(_end_gently, tree, folder)
    with on_loopback(), without_signal_handlers():
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder / "r"),  # Ray opens its folder to everybody: the one above stays closed
        )
    return tree


def _end_gently(tree: ProcessTree, folder: Path) -> None:
    tree.look()
    if dead_part() is None:
        ray.shutdown()
    else:
        atexit.unregister(ray.shutdown)  # it waits for the dead
    _end_at_once(tree, folder)


def _end_at_once(tree: ProcessTree, folder: Path) -> None:
    tree.kill()
    shutil.rmtree(folder, ignore_errors=True)


def _private_folder() -> Path:
    """A new folder for this user alone, where RAY_TMPDIR says or with the machine's temporary files.

    Those that a killed command has left are removed.
    """
    chosen = os.environ.get("RAY_TMPDIR")
    parent = Path(chosen or tempfile.gettempdir())
    needed = len(os.fsencode(parent)) + len(f"/{PREFIX}12345678") + BELOW
    if needed > LONGEST_PATH:
        if chosen:
            raise TlrayError(
                f"RAY_TMPDIR {chosen} is too long by {needed - LONGEST_PATH} characters for Ray's sockets in it; "
                "name a shorter folder, such as /tmp"
            )
        parent = Path("/tmp")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    except OSError as error:
        raise TlrayError(
            f"{parent}: Ray's folder cannot be made there ({error.strerror}); set RAY_TMPDIR to a folder with room "
            "that can be written to"
        ) from None
    _hold(folder)
    return folder


_held: list[int] = []  # descriptors: a lock lasts as long as this process, however it ends


def _hold(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _held.append(descriptor)


def _sweep(parent: Path) -> None:
    """Remove the folders of this user that no process holds any more."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            facts = os.fstat(descriptor)
            if facts.st_uid == os.getuid() and time.time() - facts.st_mtime > SECONDS_TO_TAKE_HOLD:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue
        finally:
            os.close(descriptor)
