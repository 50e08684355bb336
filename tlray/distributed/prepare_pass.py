"""Preparing images on all nodes: each object read once by some worker, checked, and kept in a shard.

    prepare_on_cluster(config, progress)

What a task has read is in the store's index, so a killed run costs the shards that were being filled, and planning
afterwards reads no image again. Without a store of shards there is nothing to do here.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import ray

from tlray.config import DataConfig, RunConfig
from tlray.data.inspect import KnownTable
from tlray.data.prepared import open_prepared, with_preparation
from tlray.data.sources import Entry, open_source, write_listing
from tlray.distributed.cluster import ClusterSummary, cluster_summary
from tlray.distributed.errors import answer
from tlray.distributed.resources import cpu_tasks
from tlray.distributed.tasks import prepare_task
from tlray.errors import TlrayError
from tlray.process.scratch import temporary_folder
from tlray.runs.prepare import with_absolute_locations

ENTRIES_AT_ONCE = 2048  # of a task: some shards of ordinary photos
AHEAD = 2  # tasks queued for each that runs, so that an autoscaler sees what is wanted


def prepare_on_cluster(config: RunConfig, progress: Callable[[int, int], None]) -> None:
    """Read what no shard holds; `progress` is told of (images, of how many). TlrayError when they cannot be read."""
    if config.data.train is None:  # synthetic images are made on local disk
        return
    data = with_preparation(with_absolute_locations(config).data)
    shards = open_prepared(data)
    if shards is None:
        return
    known = KnownTable(shards.index())
    with temporary_folder("listing") as folder:
        listing = folder / "missing"
        chunks = _missing(data, known, listing)
        total = next(chunks)
        done = 0
        cluster = cluster_summary(config.cluster)
        for num_done in _prepared(data, chunks, cluster, max_retries=config.sweep.max_failures):
            done += num_done
            progress(done, total)


def _missing(data: DataConfig, known: KnownTable, listing: Path) -> Iterator:
    """The number of images that no shard holds, then lists of them, each of one location."""
    locations = {"data.train": data.train, "data.val": data.val, "data.test": data.test}
    listings = [
        write_listing(field, open_source(field, uri, data), listing.with_suffix(f".{field}"))
        for field, uri in locations.items()
        if uri is not None
    ]

    def wanted(entry: Entry) -> bool:
        return not entry.reason and (not entry.version or (entry.uri, entry.version) not in known)

    yield sum(wanted(entry) for entries in listings for entry in entries)
    for entries in listings:
        remaining = filter(wanted, entries)
        while some := list(islice(remaining, ENTRIES_AT_ONCE)):
            yield some


def _prepared(
    data: DataConfig, chunks: Iterator[list[Entry]], cluster: ClusterSummary, *, max_retries: int
) -> Iterator[int]:
    """Images of each chunk, as they are done."""
    resources = cpu_tasks(cluster)
    task = prepare_task.options(**resources.options, max_retries=max_retries)
    running: list[ray.ObjectRef] = []
    while True:
        while len(running) < AHEAD * resources.concurrent and (chunk := next(chunks, None)) is not None:
            running.append(task.remote(data, chunk, resources.threads))
        if not running:
            return
        (done,), running = ray.wait(running)
        try:
            yield answer(done, "preparing the images", "the same run again goes on")
        except TlrayError:
            for other in running:
                ray.cancel(other, force=True)
            raise
