"""The activation pass in this process, without Ray.

compute_here(run_uri, config, manifest, plan.activations, device, progress)
"""

from collections.abc import Callable, Sequence

import torch

from tlray.activations.charges import shard_mark, write_charges
from tlray.activations.chunks import list_chunks
from tlray.activations.compute import PassSettings, compute_chunks, decoders
from tlray.activations.errors import ActivationError
from tlray.activations.location import open_store
from tlray.activations.planned import ActivationSource
from tlray.config import RunConfig
from tlray.data.manifest import Manifest
from tlray.data.read import image_reader


def compute_here(
    run_uri: str,
    config: RunConfig,
    manifest: Manifest,
    sources: Sequence[ActivationSource],
    device: torch.device,
    progress: Callable[[int, int], None],
) -> None:
    """Compute what the store lacks of `sources`; `progress` is told of (images through a prefix, of how many).

    ActivationError when the activations of one of them cannot be made or do not fit.
    """
    store = open_store(config)
    images_per_shard = config.activations.images_per_shard
    chunks = list_chunks(sources, manifest, store, images_per_shard=images_per_shard, num_workers=1)
    settings = PassSettings(
        num_classes=len(manifest.classes),
        run=shard_mark(run_uri),
        device=device,
        num_threads=max(config.data.num_threads, decoders(device)),
        read=image_reader(config.data),
    )
    total, done = sum(chunk.num_forwards for chunk in chunks), 0
    for chunk, outcome in compute_chunks(chunks, manifest.find, store, settings):
        if outcome.failures:
            raise ActivationError("; ".join(outcome.failures.values()))
        done += chunk.num_forwards
        progress(done, total)
    write_charges(run_uri, sources, list(dict.fromkeys(trial for source in sources for trial in source.trials)), store)
