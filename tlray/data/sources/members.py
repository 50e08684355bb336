"""Names of images inside containers: FILE.tar#OFFSET+SIZE, FILE.parquet#ROW."""

import re

MEMBER = re.compile(r"(.*\.tar)#(\d+)\+(\d+)", re.IGNORECASE | re.DOTALL)
ROW = re.compile(r"(.*\.parquet)#(\d+)", re.IGNORECASE | re.DOTALL)


def member_of(uri: str) -> tuple[str, int, int]:
    """FILE.tar#OFFSET+SIZE taken apart."""
    found = MEMBER.fullmatch(uri)
    assert found is not None, uri
    return found[1], int(found[2]), int(found[3])


def row_of(uri: str) -> tuple[str, int]:
    """FILE.parquet#ROW taken apart."""
    found = ROW.fullmatch(uri)
    assert found is not None, uri
    return found[1], int(found[2])
