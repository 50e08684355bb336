"""The activation pass: what frozen prefixes compute of the images, once for all trials, as tasks of the cluster.

    broken = compute_activations(run, store, resources, watch)

Every chunk is a task that commits its own shards, so a killed worker costs a chunk, which Ray starts again elsewhere;
a killed run costs the chunks in progress: the next one lists what is missing and computes that.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import ray

from tlray.activations.charges import shard_mark, write_charges
from tlray.activations.chunks import Chunk, list_chunks
from tlray.activations.keys import ActivationKey
from tlray.activations.location import open_store
from tlray.activations.planned import ActivationSource
from tlray.activations.store import ActivationStore
from tlray.config import TrialConfig
from tlray.distributed.cluster import cluster_summary
from tlray.distributed.errors import answer, may_pass
from tlray.distributed.resources import TaskResources, model_tasks
from tlray.distributed.tasks import chunk_task
from tlray.errors import TlrayError, TrialError
from tlray.runs.prepare import Run

TURNS = 3  # of a task's chunks, each with all the patience there is, before the run ends and is to be resumed
AHEAD = 2  # tasks queued for each that computes, so that an autoscaler sees what is wanted
CHUNKS_ON_A_GPU = 16
POLL_SECONDS = 1.0  # between two looks at the clock where time is limited


def unlimited() -> float:
    """Seconds left without a budget."""
    return math.inf


def compute_activations(
    run: Run,
    store: ActivationStore,
    resources: TaskResources,
    progress: Callable[[int, int], None],
    readers: Sequence[TrialConfig] | None = None,
    time_left: Callable[[], float] = unlimited,
) -> dict[str, str]:
    """Compute what is missing -> why, for each backbone id whose activations cannot be made.

    `progress` is told of (images through a prefix, of how many). `readers`: the trials that have a row or will have
    one, where these are not all. When no `time_left` is, the chunks under way are given up and the rest is not begun.
    TlrayError when the images themselves are at fault, or when workers keep dying.
    """
    ids = [trial.trial_id for trial in (run.trials if readers is None else readers)]
    sources = tuple(source for source in run.plan.activations if not set(ids).isdisjoint(source.trials))
    chunks = list_chunks(
        sources,
        run.manifest,
        store,
        images_per_shard=run.config.activations.images_per_shard,
        num_workers=resources.concurrent,
    )
    keys = _keys(sources)
    for key in keys.values():
        store.touch(key)
    total = sum(chunk.num_forwards for chunk in chunks)
    if not store.make_room(_bytes_to_add(chunks, sources), keep=set(keys)):
        raise TrialError(
            f"activations.max_gb {run.config.activations.max_gb:g}: {store.uri} has no room for what this run keeps, "
            "and other runs are using the rest; raise it, or set activations.materialise=never"
        )
    done = 0
    failures: dict[str, str] = {}
    for outcome, chunk in _computed(run, chunks, resources, time_left):
        done += chunk.num_forwards
        failures |= outcome.failures
        progress(done, total)
    write_charges(run.uri, sources, ids, store)
    return failures


def run_activation_pass(run: Run, progress: Callable[[int, int], None]) -> dict[str, str]:
    """`compute_activations` by itself, for what needs no trials; the activations are protected while it runs."""
    store = open_store(run.config)
    with store.lease(shard_mark(run.uri), list(_keys(run.plan.activations).values())):
        tasks = model_tasks(run.config.sweep, cluster_summary(run.config.cluster))
        return compute_activations(run, store, tasks, progress)


def _computed(
    run: Run, chunks: list[Chunk], resources: TaskResources, time_left: Callable[[], float]
) -> Iterator[tuple]:
    """Every chunk with its outcome, as they are done; one that has lost its store or its node has its turn later."""
    task = chunk_task.options(**resources.options, max_retries=run.config.sweep.max_failures)
    remaining = deque(chunks)
    turns: Counter[int] = Counter()  # that a chunk has had, by its identity
    running: dict[ray.ObjectRef, list[Chunk]] = {}
    in_a_task = _chunks_in_a_task(len(chunks), resources)
    while True:
        while len(running) < AHEAD * resources.concurrent and remaining:
            some = [remaining.popleft() for _ in range(min(in_a_task, len(remaining)))]
            turns.update(map(id, some))
            running[task.remote(run.uri, some, resources.threads)] = some
        if not running:
            return
        ready, _ = ray.wait(list(running), timeout=POLL_SECONDS if math.isfinite(time_left()) else None)
        if time_left() <= 0:
            _give_up(running)
            return
        if not ready:
            continue
        (done,) = ready
        some = running.pop(done)
        try:
            outcomes = answer(done, "the activation pass", f"`tlray resume {run.uri}` goes on")
            yield from zip(outcomes, some, strict=True)
        except TlrayError as error:
            if may_pass(error) and max(turns[id(chunk)] for chunk in some) < TURNS:
                remaining.extend(some)
                continue
            _give_up(running)
            raise


def _give_up(running: Iterable[ray.ObjectRef]) -> None:
    for task in running:
        ray.cancel(task, force=True)


def _chunks_in_a_task(num_chunks: int, resources: TaskResources) -> int:
    """On a GPU several, which it computes without a pause in between; every GPU gets some.

    A kill costs one in any case, as what the others came to is committed.
    """
    if resources.gpus == 0:
        return 1
    return max(1, min(CHUNKS_ON_A_GPU, num_chunks // (AHEAD * resources.concurrent)))


def _keys(sources: tuple[ActivationSource, ...]) -> dict[str, ActivationKey]:
    keys = [ActivationKey(**fields) for source in sources if source.materialise for fields in source.keys]
    return {key.digest: key for key in keys}


def _bytes_to_add(chunks: list[Chunk], sources: tuple[ActivationSource, ...]) -> int:
    size = {ActivationKey(**fields).digest: source.bytes_per_image for source in sources for fields in source.keys}
    return sum(
        len(chunk.content_ids) * size[key.digest]
        for chunk in chunks
        for draw in chunk.draws
        for wanted in draw.wanted
        for key in wanted.keys
    )
