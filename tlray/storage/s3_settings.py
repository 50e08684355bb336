"""How patient requests to S3 are. Every field can be set in the environment: TLRAY_S3_READ_TIMEOUT=5 and so on."""

import math
import os
from dataclasses import dataclass, fields

from tlray.errors import StorageError

UNSIGNED = "AWS_NO_SIGN_REQUEST"


@dataclass(frozen=True)
class S3Settings:
    """Times in seconds. A request is one of at most s3_read.PART_BYTES."""

    total_timeout: float = 60.0  # no further attempt begins after that
    attempts: int | None = 6  # of a request in all; None: as many as there is time for
    backoff: float = 0.5  # at most, before the second attempt; twice that before the third, and so on
    connect_timeout: float = 10.0
    read_timeout: float = 30.0  # without a byte
    request_timeout: float = 60.0  # for one attempt, however steadily its bytes drip in


# What a run's work takes as defaults: nobody waits before a terminal for the one request, and hours may be lost by it.
PATIENT = {"total_timeout": 600.0, "attempts": None}
_patient = False


def be_patient() -> bool:
    """Requests of this process are tried for ten minutes by default from now on -> whether that is news."""
    global _patient
    before, _patient = _patient, True
    return not before


def settings_from_environment() -> S3Settings:
    """StorageError for a value that is not a number above zero."""
    values: dict[str, float | None] = dict(PATIENT) if _patient else {}
    for field in fields(S3Settings):
        name = f"TLRAY_S3_{field.name.upper()}"
        text = os.environ.get(name)
        if text is not None:
            values[field.name] = _positive(name, text, int if field.name == "attempts" else float)
    return S3Settings(**values)  # type: ignore[arg-type]


def asks_for_unsigned() -> bool:
    """Whether requests go without credentials although there may be some, as for `aws --no-sign-request`."""
    text = os.environ.get(UNSIGNED, "").strip().lower()
    if text not in ("", "0", "1", "false", "true", "no", "yes"):
        raise StorageError(f"{UNSIGNED}={text!r} is neither yes nor no")
    return text in ("1", "true", "yes")


def _positive(name: str, text: str, kind: type[int] | type[float]) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise StorageError(f"{name}={text!r} is not a {'whole ' if kind is int else ''}number above zero")
    return value
