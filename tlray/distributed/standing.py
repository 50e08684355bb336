"""Whether a Ray that answers also works: what is said, and when it is given up, from one look after the other.

    standing = Standing(); verdict = standing.judge(look)      # once a second

Waiting is legitimate where a node may still come. Nothing at work although what is waited for is free, is not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LOOKS_TO_TELL = 60  # looks in a row, one a second: a machine that was asleep is not taken for one that stands still
LOOKS_TO_END = 180  # a process of Ray's may take a minute to start where the machine is busy
ROUNDING = 1e-6
UNCOUNTED = ("object_store_memory",)  # changes with what is kept in it

Shape = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node that is alive."""

    all: Shape
    free: Shape

    @property
    def is_at_work(self) -> bool:
        return any(
            self.free.get(name, 0.0) < amount - ROUNDING for name, amount in self.all.items() if name not in UNCOUNTED
        )


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A loop of the driver, and for how many looks it has not turned, or had nothing at work."""

    name: str
    still: int
    idle: int


@dataclass(frozen=True, kw_only=True)
class Look:
    nodes: Sequence[Node]
    waiting: Sequence[Shape]  # resources of each task, actor and group that Ray has not placed
    loops: Sequence[Loop] = ()


@dataclass(frozen=True)
class Verdict:
    """`note`: worth a line. `end`: nothing more will come of it."""

    note: str | None = None
    end: str | None = None


@dataclass
class Standing:
    looks_for_a_node: int = 20 * 60  # before a cluster is given up that has no node for what waits
    _unplaced: int = 0
    _homeless: int = 0
    _told: set[str] = field(default_factory=set)

    def judge(self, look: Look) -> Verdict:
        at_work = any(node.is_at_work for node in look.nodes)
        fits_now = [shape for shape in look.waiting if any(_fits(shape, node.free) for node in look.nodes)]
        fits_never = bool(look.waiting) and not any(
            _fits(shape, node.all) for shape in look.waiting for node in look.nodes
        )
        self._unplaced = self._unplaced + 1 if fits_now and not at_work else 0
        self._homeless = self._homeless + 1 if fits_never and not at_work else 0
        if self._unplaced >= LOOKS_TO_TELL:
            what = (
                f"Ray has started nothing for {self._unplaced} s, though {_words(fits_now[0])} is free and waited for"
            )
            return self._told_or_ended("unplaced", what, self._unplaced >= LOOKS_TO_END)
        if self._homeless >= LOOKS_TO_TELL:
            what = f"no node has {_words(look.waiting[0])}, which the work waits for; {len(look.nodes)} are alive"
            return self._told_or_ended("homeless", what, self._homeless >= self.looks_for_a_node)
        for loop in look.loops:
            if loop.still >= LOOKS_TO_TELL:
                what = f"{loop.name} has stood still for {loop.still} s"
                return self._told_or_ended("still", what, loop.still >= LOOKS_TO_END)
            if loop.idle >= LOOKS_TO_TELL and not look.waiting and not at_work:
                what = f"{loop.name} has started none of the waiting trials for {loop.idle} s"
                return self._told_or_ended("idle", what, loop.idle >= LOOKS_TO_END)
        self._told.clear()
        return Verdict()

    def _told_or_ended(self, kind: str, what: str, ends: bool) -> Verdict:
        if ends:
            return Verdict(end=what)
        if kind in self._told:
            return Verdict()
        self._told.add(kind)
        return Verdict(note=what)


def _fits(shape: Shape, room: Shape) -> bool:
    return all(room.get(name, 0.0) >= amount - ROUNDING for name, amount in shape.items())


def _words(shape: Shape) -> str:
    return "{" + ", ".join(f"{name}: {amount:g}" for name, amount in shape.items()) + "}" if shape else "a process"
