"""Repeats requests to S3 that may be repeated: with longer and longer random pauses, and not for ever."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from tlray.storage.s3_access import Access, access, renew
from tlray.storage.s3_errors import EXPIRED, REDIRECTED, RequestFailed, failed_request

LONGEST_PAUSE = 20.0  # seconds
Result = TypeVar("Result")


def with_retries(bucket: str, request: Callable[[Access], Result]) -> Result:
    """The result of a request that may be repeated, made until it succeeds or RequestFailed says that it will not.

    Expired credentials are read anew once, and a bucket that turns out to be in another region is looked for once.
    """
    begun, attempt = time.monotonic(), 0
    mended: set[str] = set()
    while True:
        clients = access()
        try:
            return request(clients)
        except Exception as error:
            failure = error if isinstance(error, RequestFailed) else failed_request(error)
            if failure is None:
                raise
        attempt += 1
        if failure.code in EXPIRED and "credentials" not in mended:
            mended.add("credentials")
            renew(clients)
        elif failure.code in REDIRECTED and "region" not in mended and clients.find_region(bucket):
            mended.add("region")
        elif failure.may_pass and _may_repeat(clients, begun, attempt):
            _pause(clients.settings.backoff, attempt)
        else:
            failure.attempts, failure.seconds = attempt, time.monotonic() - begun
            raise failure


def _may_repeat(clients: Access, begun: float, attempt: int) -> bool:
    settings = clients.settings
    is_in_time = time.monotonic() - begun < settings.total_timeout
    return is_in_time and (settings.attempts is None or attempt < settings.attempts)


def _pause(backoff: float, attempt: int) -> None:
    longest = min(LONGEST_PAUSE, backoff * 2.0 ** min(attempt - 1, 60))
    time.sleep(random.uniform(longest / 2, longest))  # many clients that failed together must not come back together
