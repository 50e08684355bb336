"""A `map` over threads whose results come in order and whose memory is bounded."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_threads: int, ahead: int
) -> Generator[Result, None, None]:
    """function(item) of every item, in order, computed by threads at most `ahead` items before they are asked for.

    The first exception is raised where its result would have come. The threads have ended when the iterator has:
    after the last result, an exception, or `close()`.
    """
    assert ahead >= 1
    remaining = iter(items)
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="tlray-images")
    try:
        pending: deque[Future[Result]] = deque(pool.submit(function, item) for item in islice(remaining, ahead))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
