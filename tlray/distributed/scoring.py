"""What an exported model says of some images, as tasks of the cluster: the driver may have no GPU for it.

names = classify_on_cluster(config, export_uri, images)      # a class for each image
"""

import math
from collections.abc import Sequence

import ray

from tlray.config import DataConfig, RunConfig
from tlray.data.images import Image
from tlray.distributed.cluster import cluster_summary, connect
from tlray.distributed.errors import answer
from tlray.distributed.resources import model_tasks
from tlray.distributed.tasks import take_given_gpu

LEAST_OF_A_TASK = 256  # images; fewer do not repay loading the model


def classify_on_cluster(config: RunConfig, export: str, images: Sequence[Image]) -> list[str]:
    """The most probable class of each image; TlrayError for an export that cannot be loaded or images that are gone."""
    connect()
    resources = model_tasks(config.sweep, cluster_summary(config.cluster))
    size = max(LEAST_OF_A_TASK, math.ceil(len(images) / resources.concurrent))
    task = classify_task.options(**resources.options, max_retries=config.sweep.max_failures)
    parts = [
        task.remote(config.data, export, images[at : at + size], resources.threads)
        for at in range(0, len(images), size)
    ]
    return [name for part in answer(parts, f"scoring {export}", "start it again") for name in part]


@ray.remote
def classify_task(data: DataConfig, export: str, images: Sequence[Image], num_threads: int) -> list[str]:
    """The most probable class of each image."""
    import torch

    from tlray.data.read import image_reader
    from tlray.errors import DataError
    from tlray.export import load
    from tlray.process.device import given_device

    torch.set_num_threads(num_threads)
    take_given_gpu()
    model = load(export, device=given_device().type, num_threads=max(num_threads, data.num_threads))
    read = image_reader(data)
    predictions = list(model.stream(bytes(read(image)) for image in images))
    for image, prediction in zip(images, predictions, strict=True):
        if prediction.label is None:
            raise DataError(f"{image.uri}: {prediction.error}")
    return [str(prediction.label) for prediction in predictions]
