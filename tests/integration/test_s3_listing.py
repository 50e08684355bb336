"""Listings of S3: complete and in order on any number of threads; compared with boto3 and with local disk."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import fault_proxy
import pytest

from tlray import storage

pytestmark = pytest.mark.s3

LETTERS = ["a", "b", "A", "0", "-", ".x", "_", " ", "+", "%2F", "&", "é", "\uffee", "😀"]
LAYOUTS = {
    "a few large folders": [f"{folder}/{index:03}" for folder in ("x", "x-y", "y") for index in range(120)],
    "many small folders": [f"{index // 3:03}/{index}" for index in range(400)],
    "a folder to each object": [f"{index:03}/image" for index in range(200)],
    "flat": [f"{index:04}.jpg" for index in range(300)],
    "one folder in one folder": [f"data/images/{index % 7}/{index:03}" for index in range(300)],
    "files beside folders": [f"{index:03}{end}" for index in range(100) for end in ("", "-", "/0", "/1", "0")],
}


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlray.storage.s3_listing.PAGE", 20)
    monkeypatch.setattr("tlray.storage.s3_listing.OBJECTS_PER_STRETCH", 40)


def odd_names() -> list[str]:
    """Paths of one to four parts of odd letters, none of which is a folder of another."""
    generator = random.Random(0)
    parts = (["".join(generator.choices(LETTERS, k=2)) for _ in range(generator.randint(1, 4))] for _ in range(400))
    names = {"/".join(part.strip() + "n" for part in path) for path in parts}
    return [name for name in names if not any(other.startswith(f"{name}/") for other in names)]


def put(client: Any, bucket: str, names: list[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: client.put_object(Bucket=bucket, Key=name, Body=name.encode()), names))


def boto3_listing(client: Any, bucket: str, prefix: str) -> Iterator[storage.FileInfo]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", ()):
            modified, etag = entry["LastModified"].timestamp(), entry["ETag"].strip('"')
            yield storage.FileInfo(f"s3://{bucket}/{entry['Key']}", entry["Size"], modified, etag)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_listing_is_boto3s_whatever_the_layout_and_the_number_of_threads(layout: str, s3: Any) -> None:
    client = boto3.session.Session().client("s3")
    put(client, s3.name, [f"images/{name}" for name in LAYOUTS[layout]])
    put(client, s3.name, ["images-2/other", "image", "images"])
    expected = list(boto3_listing(client, s3.name, "images/"))
    assert len(expected) == len(LAYOUTS[layout])
    for num_threads in (1, 2, 16):
        assert list(storage.list_files(f"{s3.uri}/images", num_threads)) == expected


def test_odd_names_are_listed_in_the_same_order_on_s3_and_on_disk(s3: Any, tmp_path: Path) -> None:
    names = odd_names()
    put(boto3.session.Session().client("s3"), s3.name, names)
    for name in names:
        storage.write_text(str(tmp_path / name), "")
    expected = sorted(names)
    for root, num_threads in ((str(tmp_path), 1), (s3.uri, 1), (s3.uri, 5)):
        assert [info.uri.removeprefix(f"{root}/") for info in storage.list_files(root, num_threads)] == expected


def test_what_stands_for_a_folder_is_not_listed_by_threads_either(s3: Any) -> None:
    names = [f"{folder}/{index:02}" for folder in "abc" for index in range(30)]
    put(boto3.session.Session().client("s3"), s3.name, [*names, "a/", "b/", "c/"])
    assert [info.uri.removeprefix(f"{s3.uri}/") for info in storage.list_files(s3.uri, 4)] == names


def test_a_listing_of_one_page_is_one_request(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(boto3.session.Session().client("s3"), s3.name, [f"{index}/image" for index in range(20)])
    with fault_proxy.fault_proxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        storage.forget_clients()
        assert len(list(storage.list_files(s3.uri, 8))) == 20
        assert proxy.seen() == 1


def test_folders_are_listed_side_by_side(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(boto3.session.Session().client("s3"), s3.name, [f"{index // 40}/{index:03}" for index in range(240)])
    together = threading.Barrier(3, timeout=30)  # broken, and the listing with it, unless three requests are under way
    with fault_proxy.fault_proxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        storage.forget_clients()
        proxy.spoil(fault_proxy.first(together.wait), times=3, path="start-after=[0-9]")
        assert len(list(storage.list_files(s3.uri, 3))) == 240
        assert not together.broken
        assert proxy.seen("start-after=[0-9]") >= 3


def test_a_listing_that_is_left_early_asks_for_no_more_than_a_few_pages(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(boto3.session.Session().client("s3"), s3.name, [f"{index:04}" for index in range(400)])
    with fault_proxy.fault_proxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        storage.forget_clients()
        listing = storage.list_files(s3.uri)
        assert next(listing).uri == f"{s3.uri}/0000"
        listing.close()  # type: ignore[attr-defined]
        assert proxy.seen() == 1
        listing = storage.list_files(s3.uri)
        for _ in range(30):
            next(listing)
        listing.close()  # type: ignore[attr-defined]
        assert proxy.seen() <= 1 + 1 + 8
