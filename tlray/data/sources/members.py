"""Names of images inside containers: FILE.tar#OFFSET+SIZE, FILE.parquet#ROW, FILE.zip#NAME."""

import re

MEMBER = re.compile(r"(.*\.(?:tar|tar\.gz|tgz))#(\d+)\+(\d+)", re.IGNORECASE | re.DOTALL)
ROW = re.compile(r"(.*\.parquet)#(\d+)", re.IGNORECASE | re.DOTALL)
IN_ZIP = re.compile(r"(.*?\.zip)#(.+)", re.IGNORECASE | re.DOTALL)


def member_of(uri: str) -> tuple[str, int, int]:
    """FILE.tar#OFFSET+SIZE taken apart; of a .tar.gz the offset is in what it unpacks to."""
    found = MEMBER.fullmatch(uri)
    assert found is not None, uri
    return found[1], int(found[2]), int(found[3])


def row_of(uri: str) -> tuple[str, int]:
    """FILE.parquet#ROW taken apart."""
    found = ROW.fullmatch(uri)
    assert found is not None, uri
    return found[1], int(found[2])


def member_of_zip(uri: str) -> tuple[str, str]:
    """FILE.zip#NAME taken apart."""
    found = IN_ZIP.fullmatch(uri)
    assert found is not None, uri
    return found[1], found[2]
