"""Commands forked from a process that has imported what they import: that takes longer than many a command's work.

A command's first seconds are not those of a user's, so what is signalled or killed itself is started in the usual way.
"""

import atexit
import json
import multiprocessing
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

PRELOADED = (
    "tlray.cli",
    "tlray.workflows.run",
    "tlray.distributed.tune_trials",
    "tlray.workflows.conclude",
    "onnxruntime",
    "onnxscript",
)


class Forked:
    """The part of subprocess.Popen that is needed, of a forked command."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*PRELOADED, __name__])
        log.write_bytes(b"")
        request = json.dumps([list(arguments), dict(environment), str(log)])
        self._process = context.Process(target=_run, args=(request,), daemon=True)
        self._process.start()  # a daemon to multiprocessing: it does not wait for it when this process ends
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("tlray", timeout or 0.0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _run(request: str) -> None:
    """In the fork: become the command, with its environment, its output and the ends that Python gives a process."""
    arguments, environment, log = json.loads(request)
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # which the imports have asked for
    files = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for file, number in zip((*files, files[1]), (0, 1, 2), strict=True):
        os.dup2(file, number)
    from tlray.cli import main

    try:
        main(arguments)
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
