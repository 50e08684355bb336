"""Memory of batches is used again, and never while anybody can still see the batch."""

import gc

import numpy as np
import torch

from tlray.data.reused import ReusedArrays


def test_memory_is_given_out_again_when_the_tensor_and_its_views_are_gone() -> None:
    arrays = ReusedArrays()
    batch = torch.from_numpy(arrays.take((4, 3, 8, 8)))
    address = batch.data_ptr()
    part, as_numpy = batch[1:].permute(0, 2, 3, 1), batch.numpy()
    del batch
    second = torch.from_numpy(arrays.take((4, 3, 8, 8)))
    assert second.data_ptr() != address
    del part
    assert torch.from_numpy(arrays.take((4, 3, 8, 8))).data_ptr() not in (address, second.data_ptr())
    del as_numpy
    gc.collect()
    found = [torch.from_numpy(arrays.take((4, 3, 8, 8))) for _ in range(2)]
    assert address in {tensor.data_ptr() for tensor in found}
    assert len({tensor.data_ptr() for tensor in (*found, second)}) == 3


def test_a_smaller_batch_fits_where_a_larger_one_was_and_a_larger_one_gets_more() -> None:
    arrays = ReusedArrays()
    address = torch.from_numpy(arrays.take((4, 3, 8, 8))).data_ptr()
    small = torch.from_numpy(arrays.take((2, 3, 8, 8)))
    assert small.shape == (2, 3, 8, 8)
    assert small.data_ptr() == address
    del small
    large = arrays.take((9, 3, 8, 8))
    assert large.shape == (9, 3, 8, 8)
    large[:] = np.arange(9, dtype=np.uint8).reshape(9, 1, 1, 1)
    assert large.sum() == 36 * 192


def test_batches_that_are_kept_keep_their_values() -> None:
    arrays = ReusedArrays()
    kept = []
    for number in range(20):
        batch = torch.from_numpy(arrays.take((2, 3, 4, 4)))
        batch.fill_(number)
        if number % 3 == 0:
            kept.append((number, batch))
    assert all(bool((batch == number).all()) for number, batch in kept)
