"""A sweep on a growing and shrinking set of workers, event by event: when it ends, and what its nodes cost.

    result = simulate([Stage(jobs, fresh_process=True), ...], Cluster(workers=64, node_seconds=180.0, ...))
    result.seconds, result.node_seconds

Stages follow each other; within one, jobs are started in their order on the worker that is free first. A worker is a
node of its own that is asked for when a job waits for it, and given back when it has been idle for a while. Workers may
share the cores of one machine: jobs that run at once then slow each other down alike (processor sharing).
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

NEVER = float("inf")


@dataclass(frozen=True)
class Job:
    """Seconds of one worker's work, piece after piece; after each, `goes_on(piece)` says whether the next follows."""

    pieces: tuple[float, ...]
    goes_on: Callable[[int], bool] = lambda piece: True


@dataclass(frozen=True)
class Stage:
    name: str
    jobs: Sequence[Job]
    process_seconds: float  # of work before a worker's first job of this stage
    speed_up: float = 1.0  # of a job whose threads find an idle core


@dataclass(frozen=True)
class Cluster:
    workers: int
    start_seconds: float = 0.0  # from asking for a node to its being there
    idle_seconds: float = NEVER  # after which a node is given back
    capacity: Callable[[int], float] = float  # work that so many jobs at once get done, in units of one alone


@dataclass(frozen=True)
class Result:
    seconds: float
    node_seconds: float  # from asking for each node to giving it back
    stages: dict[str, float] = field(default_factory=dict)


@dataclass
class _Worker:
    asked: float  # when its node was asked for
    free: float  # when it is, or became, free


def simulate(stages: Sequence[Stage], cluster: Cluster) -> Result:
    """All stages from nothing; every node is given back at the end, at the latest."""
    now, spent = 0.0, 0.0
    idle: list[_Worker] = []
    lengths = {}
    for stage in stages:
        started = now
        now, spent_on_nodes, idle = _run_stage(stage, cluster, now, idle)
        spent += spent_on_nodes
        lengths[stage.name] = now - started
    spent += sum(min(now, worker.free + cluster.idle_seconds) - worker.asked for worker in idle)
    return Result(now, spent, lengths)


def _run_stage(stage: Stage, cluster: Cluster, now: float, idle: list[_Worker]) -> tuple[float, float, list[_Worker]]:
    """-> when the stage ends, node-seconds of nodes that were given back by then, the workers that are left."""
    spent = sum(worker.free + cluster.idle_seconds - worker.asked for worker in idle if _is_gone(worker, cluster, now))
    idle = [worker for worker in idle if not _is_gone(worker, cluster, now)]
    waiting = deque(stage.jobs)
    wanted = max(0, min(cluster.workers, len(waiting)) - len(idle))
    number = count()
    # (time, order, worker) of nodes that are on their way; those that are there are simply on their way no longer
    coming = [(now, next(number), worker) for worker in idle]
    coming += [(now + cluster.start_seconds, next(number), _Worker(now, now)) for _ in range(wanted)]
    heapq.heapify(coming)
    ended: list[_Worker] = []
    running: list[tuple[float, int, _Worker, Job, int]] = []  # by the reading of a clock that runs with the work
    clock, last = 0.0, now
    while coming or running:
        rate = _rate(cluster, len(running), stage.speed_up)
        finish = last + (running[0][0] - clock) / rate if running else NEVER
        if coming and coming[0][0] <= finish:
            now, _, worker = heapq.heappop(coming)
            clock += (now - last) * rate if running else 0.0
            last = now
            if waiting:
                job = waiting.popleft()
                first = stage.process_seconds + job.pieces[0]
                heapq.heappush(running, (clock + first, next(number), worker, job, 0))
            else:
                worker.free = now
                ended.append(worker)
            continue
        now = last = finish
        clock, _, worker, job, piece = heapq.heappop(running)
        if piece + 1 < len(job.pieces) and job.goes_on(piece):
            heapq.heappush(running, (clock + job.pieces[piece + 1], next(number), worker, job, piece + 1))
        elif waiting:
            job = waiting.popleft()
            heapq.heappush(running, (clock + job.pieces[0], next(number), worker, job, 0))
        else:
            worker.free = now
            ended.append(worker)
    return now, spent, ended


def _rate(cluster: Cluster, running: int, speed_up: float) -> float:
    """How fast each of so many jobs goes; what its threads add is at most what one more job would."""
    if not running:
        return 1.0
    alone = cluster.capacity(running) / running
    return max(alone, min(speed_up, cluster.capacity(running + 1) / running))


def _is_gone(worker: _Worker, cluster: Cluster, now: float) -> bool:
    return worker.free + cluster.idle_seconds < now
