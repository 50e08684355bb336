"""Batch prediction as tasks of the cluster: parts of some thousand images, each written whole by the task that did it.

    summary = predict_on_cluster("s3://bucket/run", ["s3://bucket/images"], "s3://bucket/predictions", progress)

A killed worker costs its part, which Ray starts again elsewhere; a killed driver costs the parts in progress: the next
start finds the others there. The images are listed before the first worker is asked for.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tlray import storage
from tlray.config import SweepConfig
from tlray.data.inputs import stream_inputs
from tlray.distributed.cluster import cluster_summary, connect
from tlray.distributed.errors import answer
from tlray.distributed.ready import check_seen
from tlray.distributed.resources import TaskResources, model_tasks
from tlray.distributed.tasks import take_given_gpu
from tlray.errors import TlrayError
from tlray.inference.outlook import open_output, outstanding
from tlray.inference.output import ModelFacts, PredictionOutput, PredictionSpec, PredictionSummary
from tlray.inference.parts import Listing, write_parts
from tlray.process.scratch import temporary_folder

AHEAD = 2  # parts queued for each that is computed, so that an autoscaler sees what is wanted
LOOK_AGAIN = 5.0  # seconds after which the cluster may have grown
MAX_RETRIES = 5  # of a part whose worker died
GO_ON = "the same command again goes on"
Progress = Callable[[int, int], None]


def predict_on_cluster(model_ref: str, images: Sequence[str], output_uri: str, progress: Progress) -> PredictionSummary:
    """Predict what `output_uri` does not hold yet; `progress` is told of (images done by now, of how many).

    DataError: no such model, or images that are not there. InputError: the folder holds predictions of another model or
    of other images. TlrayError when workers keep dying, or a server gives no access.
    """
    started = time.perf_counter()
    locations, output = open_output(images, output_uri)
    connect()
    check_seen(_local_places(model_ref, locations, output), ("--output",))
    found = _model_task(model_ref)
    with temporary_folder("listing") as folder:
        listing = write_parts(stream_inputs(locations), folder / "images.parquet")
        model: ModelFacts = answer(found, "reading the model", GO_ON)
        output.begin(PredictionSpec(model=model, images=locations))
        left = outstanding(listing, output.parts_there())
        done = left.num_done
        progress(done, listing.num_images)
        summary = output.summary()
        if left.missing or left.gone or summary is None:
            output.reopen()
            output.remove(left.gone)
            for number in _computed(model, output, listing, left.missing):
                done += listing.sizes[number]
                progress(done, listing.num_images)
            summary = _finish(output, model, listing, left.missing, len(left.gone), started)
        else:
            seconds = time.perf_counter() - started
            summary = dataclasses.replace(
                summary, images_computed=0, parts_computed=0, parts_removed=0, seconds=seconds, images_per_second=0.0
            )
    if summary.num_bad == summary.num_images:
        raise TlrayError(f"none of the {summary.num_images} images can be read: see {output.bad_images}")
    return summary


@ray.remote
def find_model_task(model_ref: str) -> Any:
    """The ModelFacts of what `model_ref` means; imports what classifying needs, for the parts that follow."""
    from tlray.inference.classify import find_model

    return find_model(model_ref)


@ray.remote
def predict_task(model: ModelFacts, files: pa.Table, location: str, num_threads: int) -> None:
    """Classifies the images of one part and writes it."""
    storage.be_patient()
    from tlray.inference.classify import open_classifier
    from tlray.process.device import given_device

    take_given_gpu()
    device = given_device().type
    storage.write_bytes(location, open_classifier(model, device).classify(files, num_threads))


def _local_places(model_ref: str, images: Sequence[str], output: PredictionOutput) -> dict[str, str]:
    named = {"--output": output.uri, "the model": storage.absolute(model_ref)}
    named |= {f"images[{place}]": uri for place, uri in enumerate(images)}
    return {field: uri for field, uri in named.items() if not storage.is_remote(uri)}


def _model_task(model_ref: str) -> ray.ObjectRef:
    """Beside the driver, where a relative path means what the user meant."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return find_model_task.options(num_cpus=0, max_retries=0, scheduling_strategy=here).remote(
        storage.absolute(model_ref)
    )


def _computed(model: ModelFacts, output: PredictionOutput, listing: Listing, missing: Sequence[int]) -> Iterator[int]:
    """The number of every part in `missing`, as they are done."""
    resources, looked = _resources(), time.monotonic()
    remaining = iter(missing)
    running: dict[ray.ObjectRef, int] = {}
    while True:
        if time.monotonic() - looked > LOOK_AGAIN:
            resources, looked = _resources(), time.monotonic()
        task = predict_task.options(**resources.options, max_retries=MAX_RETRIES)
        while len(running) < AHEAD * resources.concurrent and (number := next(remaining, None)) is not None:
            location = output.part(listing.names[number])
            running[task.remote(model, listing.read(number), location, resources.threads)] = number
        if not running:
            return
        done, _ = ray.wait(list(running), timeout=LOOK_AGAIN)
        if not done:
            continue
        number = running.pop(done[0])
        try:
            answer(done[0], "the prediction", GO_ON)
        except TlrayError:
            for other in running:
                ray.cancel(other, force=True)
            raise
        yield number


def _resources() -> TaskResources:
    return model_tasks(SweepConfig(), cluster_summary())


def _finish(
    output: PredictionOutput,
    model: ModelFacts,
    listing: Listing,
    computed: Sequence[int],
    num_removed: int,
    started: float,
) -> PredictionSummary:
    """Write what describes the whole, once all of it is there."""
    output.remove(output.parts_there() - set(listing.names))  # of a worker that outlived an earlier start
    num_bad = output.write_bad_images(listing.names)
    images_computed = sum(listing.sizes[number] for number in computed)
    seconds = time.perf_counter() - started
    summary = PredictionSummary(
        output=output.uri,
        model=model.uri,
        model_version=model.version,
        num_images=listing.num_images,
        num_bad=num_bad,
        num_parts=len(listing.names),
        images_computed=images_computed,
        parts_computed=len(computed),
        parts_removed=num_removed,
        seconds=seconds,
        images_per_second=images_computed / seconds,
    )
    output.finish(summary)
    return summary
