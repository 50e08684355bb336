"""What stands behind an error that Ray brings from another process."""

from typing import Any

import ray

from tlray.errors import TlrayError, TrialError

LASTING = (ray.exceptions.OutOfMemoryError, ray.exceptions.RuntimeEnvSetupError)
PASSING = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.RaySystemError,
)


def answer(task: Any, what: str, remedy: str = "") -> Any:
    """`ray.get` of one task or several. Our own errors arrive as they were raised.

    Anything else, a worker that died for instance, is a TrialError: `what` broke down, why, and the remedy.
    """
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        cause = cause_of(error)
        if isinstance(cause, TlrayError):
            raise cause from None
        end = f"; {remedy}" if remedy else ""
        raise TrialError(f"{what} broke down: {reason_of(error)}{end}") from error


def cause_of(error: BaseException) -> BaseException:
    """The exception that a task raised, or the error itself where it was no task's exception (a dead worker, say)."""
    if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        return error.cause
    return error


def may_pass(error: BaseException | None) -> bool:
    """Whether the same work may succeed later: the store, a file, a node or a process was lost, and it is not at fault.

    Out of memory is the work's own fault: it has been started again before, and would be as large the next time.
    """
    if error is None:
        return False
    cause = cause_of(error)
    if isinstance(cause, LASTING) or "memory" in str(cause).lower():
        return False
    if isinstance(cause, TlrayError) and cause.may_pass:
        return True
    return isinstance(cause, PASSING) or may_pass(cause.__cause__)


def reason_of(error: BaseException) -> str:
    """Its last line, which is where the reason stands in what Ray says; the error's name where it says nothing."""
    cause = cause_of(error)
    return next(reversed(str(cause).strip().splitlines()), type(cause).__name__)
