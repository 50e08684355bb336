"""JSON that lies somewhere -> values, whoever wrote it and whatever has become of it."""

import json
from typing import Any

from tlray.errors import StorageError


def parse_json(data: str | bytes) -> Any:
    """`json.loads` with one kind of failure: JSONDecodeError also for what is no text, or nested without end."""
    try:
        return json.loads(data)
    except UnicodeDecodeError:
        raise json.JSONDecodeError("not text in UTF-8", "", 0) from None
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # a number of more digits than Python reads
        raise json.JSONDecodeError("a number is too long", "", 0) from None


def parse_object(data: str | bytes, uri: str) -> dict[str, Any]:
    """The JSON object that the file at `uri` holds; StorageError where it is something else."""
    try:
        document = parse_json(data)
    except json.JSONDecodeError as error:
        raise StorageError(f"{uri} is not JSON ({error.msg}): it is damaged, make it again") from None
    if not isinstance(document, dict):
        raise StorageError(f"{uri} is not a JSON object: it is damaged, make it again")
    return document
