"""The activation pass: images decoded once, pushed through every frozen prefix that wants them, chunk after chunk.

    for chunk, outcome in compute_chunks(chunks, manifest.find, store, num_classes=2, run=run_id, device=device, ...):
        ...

All cuts of a backbone come out of one forward. A shard is committed when its chunk has been through, and a chunk that
is begun again after a kill computes only what no shard holds. Between two chunks nothing stands still: images of the
next are decoded, and shards of the last are hashed and written, while a device computes. Plain PyTorch: the caller
decides where it runs.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import torch

from tlray.activations.chunks import Chunk, ChunkOutcome, Draw
from tlray.activations.prefix_pass import PrefixPass
from tlray.activations.store import ActivationStore
from tlray.catalogue import Preprocessing
from tlray.data.batch import Batch
from tlray.data.batching import Group, fill_batches
from tlray.data.cache import PROCESS_CACHE
from tlray.data.images import Image
from tlray.data.load import load_image
from tlray.data.read import Read, read_original
from tlray.data.to_device import on_device
from tlray.errors import DataError, TlrayError, UnreachableError

BATCH_SIZE = {"cpu": 16, "cuda": 128}
MOST_DECODERS = 8
WRITERS = 4  # threads that hash and write
CHUNKS_BEHIND = 2  # whose shards are being written, while another one is computed
BATCHES_BEHIND = 3  # that a GPU has been asked for and has not done; more would only fill its memory

Find = Callable[[Sequence[str]], Mapping[str, Image]]  # images of the manifest by content id


@dataclass(frozen=True)
class PassSettings:
    """What is the same for all chunks of a pass."""

    num_classes: int
    run: str
    device: torch.device
    num_threads: int
    read: Read = read_original


@dataclass
class _State:
    """A chunk under way."""

    chunk: Chunk
    outcome: ChunkOutcome = field(default_factory=ChunkOutcome)
    jobs_left: int = 0
    writes: list[tuple[PrefixPass, list[Future[bool]]]] = field(default_factory=list)


@dataclass
class _Job:
    """One draw of a chunk, and the passes that miss it."""

    state: _State
    draw: Draw
    images: list[Image]
    passes: list[PrefixPass]
    num_done: int = 0


def decoders(device: torch.device) -> int:
    """Threads that decode for a GPU which this process has to itself: more of them would wait for each other."""
    return min(MOST_DECODERS, os.cpu_count() or 1) if device.type == "cuda" else 1


def compute_chunk(chunk: Chunk, find: Find, store: ActivationStore, settings: PassSettings) -> ChunkOutcome:
    """`compute_chunks` for a single one."""
    ((_, outcome),) = compute_chunks([chunk], find, store, settings)
    return outcome


def compute_chunks(
    chunks: Iterable[Chunk], find: Find, store: ActivationStore, settings: PassSettings
) -> Iterator[tuple[Chunk, ChunkOutcome]]:
    """Compute and commit what `chunks` name -> each with its outcome, in order, when its shards are written.

    A backbone that fails does not keep the others from their shards. DataError when an image is gone or has changed:
    that is for the whole run to know. UnreachableError when a store is away: no backbone is at fault, and
    what is missing can be computed later.
    """
    states: deque[_State] = deque()
    jobs: deque[_Job] = deque()
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="tlray-shards") as writers:
        groups = _groups(chunks, find, store, settings, states, jobs)
        with closing(_batches(groups, settings)) as batches:
            behind: deque[torch.cuda.Event] = deque()
            for batch in batches:
                (pixels,) = batch.inputs
                job = jobs[0]
                for one in job.passes:
                    one.forward(pixels)
                _limit(behind, settings.device)
                job.num_done += len(pixels)
                if job.num_done == len(job.images):
                    _commit(job, store, settings.run, writers)
                    jobs.popleft()
                while states and _is_computed(states[0]) and sum(map(_is_computed, states)) > CHUNKS_BEHIND:
                    yield _ended(states.popleft())
        while states:
            yield _ended(states.popleft())


def _groups(
    chunks: Iterable[Chunk],
    find: Find,
    store: ActivationStore,
    settings: PassSettings,
    states: deque[_State],
    jobs: deque[_Job],
) -> Iterator[Group]:
    """The images of each forward, in order; notes the chunks and jobs that they belong to as it comes to them."""
    out = torch.cuda.Stream(settings.device) if settings.device.type == "cuda" else None
    for chunk in chunks:
        state = _State(chunk)
        found = find(chunk.content_ids)
        images = [found[content_id] for content_id in chunk.content_ids]
        listed = [
            _Job(state, draw, images, passes)
            for draw in chunk.draws
            if (passes := _passes(state, draw, store, settings, out))
        ]
        state.jobs_left = len(listed)
        states.append(state)
        for job in listed:
            jobs.append(job)
            yield from _groups_of(job, settings)


def _passes(
    state: _State, draw: Draw, store: ActivationStore, settings: PassSettings, out: torch.cuda.Stream | None
) -> list[PrefixPass]:
    """Of the backbones that have no shard of the chunk for some key."""
    passes, ids = [], state.chunk.content_ids
    for wanted in draw.wanted:
        keys = tuple(key for key in wanted.keys if not store.has_shard(key, ids))
        try:
            if keys:
                passes.append(PrefixPass(wanted, keys, len(ids), settings.num_classes, settings.device, out))
        except UnreachableError:
            raise
        except TlrayError as error:
            state.outcome.failures[wanted.backbone.id] = str(error)
    return passes


def _groups_of(job: _Job, settings: PassSettings) -> Iterator[Group]:
    preprocessing = Preprocessing.from_dict(json.loads(job.draw.preprocessing))
    load = partial(load_image, preprocessing=preprocessing, cache=PROCESS_CACHE, read=settings.read)
    if job.draw.view > 0:
        load = partial(load, augmentation=job.draw.augmentation, seed=0, epoch=job.draw.view)
    size = BATCH_SIZE[settings.device.type]
    for start in range(0, len(job.images), size):
        yield Group(job.images[start : start + size], load, preprocessing.input_size)


def _batches(groups: Iterator[Group], settings: PassSettings) -> Generator[Batch, None, None]:
    """On the device, decoded and copied ahead."""
    device = settings.device
    largest = BATCH_SIZE[device.type]
    none = torch.empty(0, dtype=torch.int64)
    filled = fill_batches(groups, largest=largest, num_threads=settings.num_threads, device=device)
    with closing(filled):
        yield from on_device((Batch((pixels,), none, none, len(pixels)) for pixels in filled), device)


def _limit(behind: deque[torch.cuda.Event], device: torch.device) -> None:
    if device.type != "cuda":
        return
    behind.append(torch.cuda.Event())
    behind[-1].record()
    if len(behind) > BATCHES_BEHIND:
        behind.popleft().synchronize()


def _commit(job: _Job, store: ActivationStore, run: str, writers: ThreadPoolExecutor) -> None:
    ids = job.state.chunk.content_ids
    job.state.writes += [(one, one.commit(store, ids, run, writers)) for one in job.passes]
    job.state.jobs_left -= 1


def _is_computed(state: _State) -> bool:
    return state.jobs_left == 0


def _ended(state: _State) -> tuple[Chunk, ChunkOutcome]:
    """Waits until the chunk's shards are written."""
    for one, futures in state.writes:
        try:
            for future in futures:
                future.result()
            state.outcome.num_forwards += len(state.chunk.content_ids)
        except (DataError, UnreachableError):
            raise
        except TlrayError as error:
            state.outcome.failures[one.wanted.backbone.id] = str(error)
    return state.chunk, state.outcome
