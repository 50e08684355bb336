"""Batches that Ray Data decodes are those that the trial's own threads decode, in the same order."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from tlray.catalogue import Preprocessing
from tlray.config import RunConfig
from tlray.data.batch import Batch, Streams
from tlray.data.loader import make_streams
from tlray.distributed.cluster import cluster_summary
from tlray.distributed.resources import trial_resources
from tlray.distributed.stream import ray_streams
from tlray.distributed.sweep import run_sweep
from tlray.errors import ClusterError, DataError
from tlray.planning.planner import plan_run
from tlray.runs.prepare import Run, new_run_uri, prepare_run
from tlray.runs.trials import load_results
from tlray.training.worker import Worker
from tlray.workflows.progress import SweepProgress

MakeConfig = Callable[..., RunConfig]

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_local"),
    # Ray Data sets its own deprecated fields when its context is made
    pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.data.context"),
]
SMALL = Preprocessing(
    input_size=(32, 32), resize=36, crop_mode="center", interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3
)
RECIPE: Any = {"batch_size": 8, "augmentation": "standard", "seed": 3}


@pytest.fixture(scope="module")
def run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    network = {"id": "timm/test_resnet", "weights": "none", "input_size": 32}
    config = RunConfig.model_validate(
        {
            "name": "stream",
            "storage": str(tmp_path_factory.mktemp("stream")),
            "data": {"train": str(image_folder)},
            "backbones": [network],
            "strategies": ["full"],
        }
    )
    return prepare_run(plan_run(config), new_run_uri(config))


def by_threads(run: Run, rank: int, world_size: int) -> Streams:
    return make_streams(
        run.manifest, SMALL, **RECIPE, rank=rank, world_size=world_size, num_threads=1, memory_cache_mb=0
    )


def by_ray_data(run: Run, rank: int, world_size: int) -> Streams:
    return ray_streams(run.uri, SMALL, **RECIPE, worker=Worker(rank=rank, world_size=world_size), cpus=1)


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.inputs[0], other.inputs[0], rtol=0, atol=0)
        assert one.rows.tolist() == other.rows.tolist()
        assert one.labels.tolist() == other.labels.tolist()
        assert one.num_global == other.num_global


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_worker_gets_the_batches_that_its_own_threads_would_make(run: Run, world_size: int) -> None:
    rank = world_size - 1
    mine, theirs = by_ray_data(run, rank, world_size), by_threads(run, rank, world_size)
    assert_same(list(mine.train(2)), list(theirs.train(2)))
    assert_same(list(mine.train(2, 1)), list(theirs.train(2))[1:])
    assert_same(list(mine.val()), list(theirs.val()))
    assert (mine.num_train, mine.num_val, mine.num_test) == (theirs.num_train, theirs.num_val, theirs.num_test)


def test_a_worker_without_an_image_in_a_batch_gets_it_empty(run: Run) -> None:
    world_size = RECIPE["batch_size"] + 1
    batches = list(by_ray_data(run, world_size - 1, world_size).train(0))
    assert_same(batches, list(by_threads(run, world_size - 1, world_size).train(0)))
    assert {batch.inputs[0].shape for batch in batches} == {(0, 3, 32, 32)}


def test_the_order_of_images_does_not_depend_on_the_number_of_workers(run: Run) -> None:
    alone = [batch.rows.tolist() for batch in by_ray_data(run, 0, 1).train(1)]
    several = [[batch.rows.tolist() for batch in by_ray_data(run, rank, 2).train(1)] for rank in range(2)]
    together = []
    for first, second in zip(*several, strict=True):
        rows = [0] * (len(first) + len(second))
        rows[0::2], rows[1::2] = first, second
        together.append(rows)
    assert together == alone


def test_an_iterator_that_is_closed_early_leaves_room_for_the_next(run: Run) -> None:
    streams = by_ray_data(run, 0, 1)
    for epoch in range(3):
        batches = streams.train(epoch)
        next(batches)
        batches.close()  # type: ignore[attr-defined]
    assert len(list(streams.train(4))) == len(list(by_threads(run, 0, 1).train(4)))


def test_an_image_that_changed_ends_the_epoch_with_its_name(make_config: MakeConfig, tmp_path: Path) -> None:
    for label in ("a", "b"):
        for number in range(12):
            path = tmp_path / "images" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (number * 20, 10, 200 if label == "a" else 100)).save(path)
    config = make_config(data={"train": str(tmp_path / "images")})
    changed = prepare_run(plan_run(config), new_run_uri(config))
    victim = changed.manifest.split("train")[3].uri
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), "black").save(buffer, "PNG")
    Path(victim).write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="has changed"):
        list(by_ray_data(changed, 0, 1).train(0))


def test_a_trial_fed_by_ray_data_has_the_numbers_of_one_that_decodes_itself(make_config: MakeConfig) -> None:
    outcomes = []
    for stream in ("threads", "ray_data"):
        config = make_config()
        config = config.model_copy(update={"data": config.data.model_copy(update={"stream": stream})})
        prepared = prepare_run(plan_run(config), new_run_uri(config))
        run_sweep(prepared, SweepProgress(prepared.trials, (), Console(file=io.StringIO())))
        rows = {row.trial_id: row for row in load_results(prepared.uri)}
        assert {row.status for row in rows.values()} == {"completed"}
        outcomes.append({trial_id: (row.val_loss, row.test_accuracy) for trial_id, row in rows.items()})
    assert outcomes[0] == outcomes[1]


def test_trials_that_leave_no_cpu_to_ray_data_are_refused(make_config: MakeConfig) -> None:
    config = make_config(sweep={"cpus_per_worker": 2})
    config = config.model_copy(update={"data": config.data.model_copy(update={"stream": "ray_data"})})
    with pytest.raises(ClusterError, match=r"data\.stream_cpus 1\) and the cluster has 2"):
        trial_resources(config, cluster_summary())
