"""The processes that this one has started, and what they have started: to end all of them, and never another's.

tree = ProcessTree()          # before the first of them is started
tree.look()                   # now and then: children of a dead parent are known only where they were seen before
tree.kill()
"""

import contextlib

import psutil

SECONDS_TO_DIE = 5.0


class ProcessTree:
    """What runs below this process and did not when the tree was made."""

    def __init__(self) -> None:
        self._me = psutil.Process()
        self._others = frozenset(self._me.children())
        self._seen: set[psutil.Process] = set()

    def look(self) -> None:
        """Remember who is there; a process is known by its start too, so that a number used again is nobody's."""
        found = [child for child in self._me.children() if child not in self._others]
        for child in found:
            self._seen.add(child)
            with contextlib.suppress(psutil.Error):
                self._seen.update(child.children(recursive=True))
        self._seen = {process for process in self._seen if process.is_running()}

    def kill(self) -> None:
        """End all of them at once, those that are started meanwhile too, and wait until they are gone."""
        for _ in range(3):
            self.look()
            for process in self._seen:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(self._seen, timeout=SECONDS_TO_DIE)
            if not any(process.is_running() for process in self._seen):
                return
