"""What stands behind an error that Ray brings from another process."""

import ray


def cause_of(error: BaseException) -> BaseException:
    """The exception that a task raised, or the error itself where it was no task's exception (a dead worker, say)."""
    if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        return error.cause
    return error


def reason_of(error: BaseException) -> str:
    """Its last line, which is where the reason stands in what Ray says."""
    return str(cause_of(error)).strip().splitlines()[-1]
