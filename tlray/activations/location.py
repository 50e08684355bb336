"""Where a run's activations are kept, and how fast they can be written and read there.

store = open_store(config)
speed = measure_speed(store.uri)
"""

import math
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tlray import storage
from tlray.activations.store import ActivationStore
from tlray.config import RunConfig

GB = 10**9
PROBE_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Room:
    """Bytes that a run may keep in the store, and those of them that it may add; infinite where nothing limits it."""

    in_store: float
    on_disk: float

    def __str__(self) -> str:
        return f"activations.max_gb leaves {self.in_store / GB:g} GB, the disk {self.on_disk / GB:g} GB"


@dataclass(frozen=True)
class Speed:
    """Seconds a byte."""

    write: float  # to the store
    fetch: float  # from the store to a node's disk; 0 where the store is local
    gather: float  # from mapped memory into a batch


def open_store(config: RunConfig) -> ActivationStore:
    """The store that `activations.location` names, by default beside the run folders."""
    settings = config.activations
    return ActivationStore(
        storage.absolute(settings.location or storage.join(config.storage, "activations")),
        cache=os.path.expanduser(settings.cache),
        max_bytes=None if settings.max_gb is None else int(settings.max_gb * GB),
        cache_max_bytes=None if settings.cache_max_gb is None else int(settings.cache_max_gb * GB),
    )


def measure_room(config: RunConfig, store: ActivationStore) -> Room:
    """What the store may hold, and what its disk has left, of which a tenth stays free."""
    limit = config.activations.max_gb
    on_disk = math.inf
    if not storage.is_remote(store.uri):
        there = next(path for path in [Path(store.uri), *Path(store.uri).parents] if path.exists())
        on_disk = shutil.disk_usage(there).free * 0.9
    return Room(in_store=math.inf if limit is None else limit * GB, on_disk=on_disk)


def measure_speed(uri: str) -> Speed:
    """One round trip of 4 MiB to the store, and one gather of as many bytes in rows of 2 KiB."""
    data = secrets.token_bytes(PROBE_BYTES)
    probe = storage.join(storage.nearest_folder(uri), f".probe-{secrets.token_hex(4)}")
    started = time.perf_counter()
    storage.write_bytes(probe, data)
    written = time.perf_counter()
    storage.read_bytes(probe)
    fetched = time.perf_counter()
    storage.delete(probe)
    rows = np.frombuffer(data, np.float16).reshape(-1, 1024)
    order = np.random.default_rng(0).permutation(len(rows))
    gathering = time.perf_counter()
    rows[order].astype(np.float32)
    gathered = time.perf_counter()
    return Speed(
        write=(written - started) / PROBE_BYTES,
        fetch=(fetched - written) / PROBE_BYTES if storage.is_remote(uri) else 0.0,
        gather=(gathered - gathering) / PROBE_BYTES,
    )
