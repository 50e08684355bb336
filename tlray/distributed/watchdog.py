"""Whether Ray still works: threads of the driver that end a command which would stand still for ever.

    start_watchdog(tree)                       # in connect(): all that a command does with Ray is watched
    with turning("Ray Tune") as loop: ...      # a loop of the driver that must not stop by itself

A driver waits for Ray in calls that do not return when a part of Ray dies, or that end the process after a minute with
a line of Ray's. The end is `ending.stop`: one line that names what died and how to go on, exit code 1, nothing left.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from tlray.distributed import private_ray, standing
from tlray.process import ending
from tlray.process.process_tree import ProcessTree

TICK = 1.0  # seconds
SILENCE = 40  # ticks without an answer from Ray's head; after 60 s Ray ends the process without a word of the run
TICKS_A_LOOK = 5  # at the processes, and at what Ray counts
UNEXPECTED = 2  # Ray's reason for the death of a node that nobody has drained


class Loop:
    """A loop of the driver that `turning` watches."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.still = self.idle = 0  # ticks
        self._at_own_work = False

    def beat(self, at_work: bool) -> None:
        """It has turned; `at_work`: something is under way that it waits for."""
        self.still = 0
        if at_work:
            self.idle = 0

    @contextmanager
    def own_work(self) -> Iterator[None]:
        """In here it may take long: the store that it writes to may be away."""
        self._at_own_work = True
        try:
            yield
        finally:
            self.still, self._at_own_work = 0, False

    def tick(self) -> None:
        if not self._at_own_work:
            self.still += 1
            self.idle += 1


_loops: list[Loop] = []
_standing = standing.Standing()


@contextmanager
def turning(name: str) -> Iterator[Loop]:
    loop = Loop(name)
    _loops.append(loop)
    try:
        yield loop
    finally:
        _loops.remove(loop)


def expect_nodes_within(minutes: float) -> None:
    """How long a cluster may be without a node for what waits (cluster.wait_minutes)."""
    _standing.looks_for_a_node = max(standing.LOOKS_TO_END, int(60 * minutes))


def start_watchdog(tree: ProcessTree | None) -> None:
    """`tree`: of the Ray that this driver has started, if it has. Ray must be connected."""
    head = _Head(ray.get_runtime_context().get_node_id(), ray.get_runtime_context().gcs_address)
    for work in (head.ask, lambda: _watch(head, tree)):
        threading.Thread(target=work, daemon=True, name="tlray-watchdog").start()


@dataclass(frozen=True)
class _Answer:
    """What Ray's head said last."""

    lost: tuple[str, ...]  # addresses of nodes that have died
    is_own_lost: bool
    nodes: tuple[standing.Node, ...]
    waiting: tuple[standing.Shape, ...]


class _Head:
    """Asked in a thread of its own, which may be stuck in a question."""

    def __init__(self, own: str, address: str) -> None:
        self._own = own
        self.address = address
        self.answer: _Answer | None = None
        self.silent = 0  # ticks

    def ask(self) -> None:
        while ray.is_initialized():
            try:
                self.answer = self._asked()
                self.silent = 0
            except Exception:  # whatever Ray raises while its head is away; the silence is what counts
                pass
            time.sleep(TICK * TICKS_A_LOOK)

    def _asked(self) -> _Answer:
        table = ray.nodes()
        lost = [node for node in table if not node["Alive"]]
        return _Answer(
            lost=tuple(node["NodeManagerAddress"] for node in lost if node.get("DeathReason") == UNEXPECTED),
            is_own_lost=any(node["NodeID"] == self._own for node in lost),
            nodes=tuple(standing.Node(all=every, free=free) for every, free in private_ray.node_shapes()),
            waiting=tuple(private_ray.waiting_shapes()),
        )


def _watch(head: _Head, tree: ProcessTree | None) -> None:
    told: set[str] = set()
    ticks = 0
    while ray.is_initialized():
        time.sleep(TICK)
        ticks += 1
        head.silent += 1
        for loop in _loops:
            loop.tick()
        if tree is not None and ticks % TICKS_A_LOOK == 0:
            tree.look()
        reason = _death(head, own_ray=tree is not None) or _standstill(head)
        if reason is not None and ray.is_initialized():
            ending.stop(1, reason)
        for address in head.answer.lost if head.answer is not None else ():
            if address not in told:
                told.add(address)
                _note(f"node {address} of the Ray cluster is lost; its work goes on where there is room")


def _death(head: _Head, *, own_ray: bool) -> str | None:
    part = private_ray.dead_part()
    if part is not None:
        return f"Ray's {part} on this machine has died"
    if head.answer is not None and head.answer.is_own_lost:
        return "this machine's node of the Ray cluster has died: its head counts it as lost"
    if head.silent > SILENCE:
        where = "of this machine's Ray" if own_ray else f"of the Ray cluster at {head.address}"
        return f"the head {where} (gcs_server) has given no answer for {head.silent:.0f} s"
    return None


def _standstill(head: _Head) -> str | None:
    if head.answer is None:
        return None
    loops = [standing.Loop(name=loop.name, still=loop.still, idle=loop.idle) for loop in list(_loops)]
    verdict = _standing.judge(standing.Look(nodes=head.answer.nodes, waiting=head.answer.waiting, loops=loops))
    if verdict.note is not None:
        _note(verdict.note)
    return verdict.end


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
