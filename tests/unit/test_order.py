"""The order of images in an epoch."""

import numpy as np
import pytest

from tlray.data.order import Windows, train_steps


def in_shards(num_images: int, num_shards: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, num_shards, num_images)


def test_windows_hold_every_image_once_and_few_shards_at_a_time() -> None:
    shard_of = in_shards(1000, 20)
    steps = train_steps(1000, 32, seed=1, epoch=2, windows=Windows(shard_of, shards_at_once=4))
    order = np.concatenate(steps)
    assert sorted(order.tolist()) == list(range(1000))
    first_seen = {shard: int(np.argmax(shard_of[order] == shard)) for shard in range(20)}
    last_seen = {shard: 999 - int(np.argmax(shard_of[order][::-1] == shard)) for shard in range(20)}
    open_at = [sum(first_seen[s] <= place <= last_seen[s] for s in range(20)) for place in range(1000)]
    assert max(open_at) == 4


def test_images_are_mixed_within_a_window() -> None:
    shard_of = in_shards(1000, 20)
    order = np.concatenate(train_steps(1000, 32, seed=1, epoch=2, windows=Windows(shard_of, shards_at_once=4)))
    runs = np.count_nonzero(np.diff(shard_of[order])) + 1
    assert runs > 600  # 20 where shards came one after the other; 750 expected of a fair mix of four


@pytest.mark.parametrize("windows", [None, Windows(in_shards(200, 8), 3)], ids=["whole", "windows"])
def test_the_order_changes_with_the_epoch_and_with_the_seed_and_with_nothing_else(windows: Windows | None) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(train_steps(200, 16, seed, epoch, windows)).tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_windows_that_hold_all_shards_are_the_plain_permutation() -> None:
    windowed = train_steps(100, 8, 0, 1, Windows(in_shards(100, 5), shards_at_once=5))
    assert [step.tolist() for step in windowed] == [step.tolist() for step in train_steps(100, 8, 0, 1)]
