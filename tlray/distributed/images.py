"""A run's images as a worker under Ray sees them: decoded by its own threads, or by Ray Data on any node."""

import dataclasses

from tlray.catalogue import Preprocessing
from tlray.config import Recipe
from tlray.data.batch import Streams
from tlray.distributed.stream import ray_streams
from tlray.runs.prepare import load_run_config
from tlray.training.run_images import run_images
from tlray.training.trial import TrialImages
from tlray.training.worker import Worker


def worker_images(run_uri: str) -> TrialImages:
    """`run_images`, with the images streamed as `data.stream` says."""
    images, data = run_images(run_uri), load_run_config(run_uri).data
    if data.stream == "threads":
        return images

    def open_streams(preprocessing: Preprocessing, recipe: Recipe, seed: int, worker: Worker) -> Streams:
        return ray_streams(
            run_uri,
            preprocessing,
            batch_size=recipe.batch_size,
            augmentation=recipe.augmentation,
            seed=seed,
            worker=worker,
            cpus=data.stream_cpus / worker.world_size,
        )

    return dataclasses.replace(images, open_streams=open_streams)
