"""What can go wrong with S3, as one line that says what to do. Both clients' errors become the same ones."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tlray.errors import StorageError, UnreachableError
from tlray.storage.s3_access import access
from tlray.storage.s3_settings import UNSIGNED, asks_for_unsigned
from tlray.storage.types import NotFoundError

NOT_FOUND = ("NoSuchKey", "404", "NotFound")
EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
REFUSED_CREDENTIALS = (
    *EXPIRED,
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "InvalidClientTokenId",
)
REDIRECTED = ("PermanentRedirect", "AuthorizationHeaderMalformed", "301", "307", "TemporaryRedirect")
REPEATED_STATUS = (408, 429)  # and all from 500 on
REPEATED_CODES = ("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded")


class RequestFailed(Exception):
    """One attempt that failed: the server's code and status, or the client's reason where it got no whole answer."""

    def __init__(self, code: str, status: int | None = None, message: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.status = status
        self.message = message
        self.attempts = 1  # made in all, in so many seconds, where it was repeated
        self.seconds = 0.0

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed a moment later."""
        if self.status is None or self.code in REPEATED_CODES:
            return True
        return self.status >= 500 or self.status in REPEATED_STATUS


def failed_request(error: Exception) -> RequestFailed | None:
    """What either client raised as a failed attempt; None for what no server or network has caused."""
    from botocore import exceptions, parsers

    if isinstance(error, exceptions.ClientError):
        answer = error.response
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        message = str(answer["Error"].get("Message", ""))
        return RequestFailed(str(answer["Error"].get("Code", "unknown error")), status, message)
    broken = (exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError)
    if isinstance(error, (*broken, parsers.ResponseParserError)):
        return RequestFailed(type(error).__name__)
    return None


def failed_read(error: Exception) -> RequestFailed:
    """What obstore raised, which says it in prose, quoting the server's answer."""
    text = str(error)
    status = re.search(r"status code: (\d{3})", text)
    if status is None:
        if "redirect" in text.lower():  # an answer without a place to go to: S3 for a bucket of another region
            return RequestFailed("PermanentRedirect", 301)
        kind = re.search(r"kind: (\w+)", text)
        return RequestFailed(kind.group(1) if kind else "no answer")
    code, message = (re.search(rf"<{name}>([^<]*)</{name}>", text) for name in ("Code", "Message"))
    return RequestFailed(
        code.group(1) if code else status.group(1), int(status.group(1)), message.group(1) if message else ""
    )


def bucket_and_key(uri: str) -> tuple[str, str]:
    """`s3://bucket/key` taken apart; the key may be empty."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,255}", bucket):
        raise StorageError(f"{uri}: {bucket!r} is not the name of a bucket; write s3://bucket/path")
    return bucket, key


@contextmanager
def one_line_errors(uri: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes a StorageError about `uri`."""
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except StorageError:  # a ValueError too, but one that says it already
        raise
    except RequestFailed as failure:
        raise explained(uri, failure) from None
    except Exception as error:
        failure_or_none = failed_request(error)
        if failure_or_none is not None:
            raise explained(uri, failure_or_none) from None
        if not isinstance(error, (BotoCoreError, ValueError, OSError)):
            raise
        raise StorageError(f"{uri}: {_client_reason(error)}") from None


def explained(uri: str, failure: RequestFailed) -> StorageError:
    """What a failure that is final means for the user; the server's code is always named."""
    if failure.status is None:
        return UnreachableError(f"{uri}: {_no_answer(failure)}")
    bucket, _ = bucket_and_key(uri)
    code, endpoint = failure.code, access().endpoint
    if code == "NoSuchBucket":
        return StorageError(f"bucket {bucket!r} does not exist at {endpoint}: create it, or correct {uri}")
    if code in NOT_FOUND:
        return NotFoundError(f"{uri} does not exist")
    if code in EXPIRED:
        return UnreachableError(
            f"{uri}: the credentials have expired, says {endpoint} ({code}), and no newer ones are found; renew what "
            "AWS_ACCESS_KEY_ID or AWS_PROFILE names"
        )
    if code in REFUSED_CREDENTIALS:
        return StorageError(
            f"{uri}: the credentials are refused by {endpoint} ({code}); check AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if failure.status in (401, 403):
        return StorageError(f"{uri}: access denied by {endpoint} ({code}); {_reason_of_denial()}")
    if failure.status == 301:
        return StorageError(f"{uri}: the bucket is in another region ({code}); set AWS_REGION to it")
    message = " ".join(failure.message.split())
    answered = f"{uri}: {endpoint} answered {code} (HTTP {failure.status}) {message}".rstrip()
    if failure.may_pass:
        return UnreachableError(f"{answered}; {_how_often(failure)} failed: try later, or with fewer requests at once")
    return StorageError(answered)


def _reason_of_denial() -> str:
    if access().credentials is not None:
        return "the credentials lack the permission"
    if asks_for_unsigned():
        return f"the bucket is not public, and {UNSIGNED} keeps the credentials back"
    return (
        "the bucket is not public, and there are no credentials found; set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    )


def _how_often(failure: RequestFailed) -> str:
    return f"{failure.attempts} attempts in {failure.seconds:.0f} s"


def _no_answer(failure: RequestFailed) -> str:
    """Connection errors are put in own words, as both clients quote whole URLs."""
    now, what = access(), failure.code
    if ("Connect" in what and what != "ConnectionClosedError") or what == "ConnectTimeoutError":
        how = f"{what}, {_how_often(failure)}"
        return f"cannot connect to {now.endpoint} ({how}); check AWS_ENDPOINT_URL and the network"
    return (
        f"{now.endpoint} gave no whole answer in {_how_often(failure)} ({what}); check the network, and "
        "raise TLRAY_S3_READ_TIMEOUT and TLRAY_S3_REQUEST_TIMEOUT where it is slow"
    )


def _client_reason(error: Exception) -> str:
    """Why no request was made at all."""
    from botocore import exceptions

    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else " ".join(str(error).split())
    if isinstance(error, ValueError) and not isinstance(error, exceptions.BotoCoreError):
        return "the endpoint is not a URL; check AWS_ENDPOINT_URL"
    return " ".join(str(error).split())
