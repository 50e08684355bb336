"""Files on local disk; what holds on S3 as well is tested against a server in tests/integration/test_s3.py."""

import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

from tlray import storage
from tlray.errors import StorageError


@pytest.fixture(autouse=True)
def no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own S3 configuration, and nobody to ask for credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage.forget_clients()


def test_absolute_locations_have_no_tilde_dots_or_trailing_slash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert storage.absolute("~/runs/../data/") == "/home/somebody/data"
    assert storage.absolute("data") == str(Path.cwd() / "data")
    assert storage.absolute("s3://bucket/a/b/") == "s3://bucket/a/b"


@pytest.mark.parametrize("uri", ["gs://bucket/x", "https://host/x", "s3://", "s3:///key"])
def test_locations_that_cannot_be_used_are_refused_by_name(uri: str) -> None:
    with pytest.raises(StorageError, match=uri):
        storage.absolute(uri)


def test_join_puts_one_slash_between_parts() -> None:
    assert storage.join("s3://bucket/", "a/", "/b") == "s3://bucket/a/b"
    assert storage.join("/", "a") == "/a"


def test_bytes_and_text_come_back_as_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    uri = str(tmp_path / "new" / "folder" / "file")
    storage.write_bytes(uri, b"first")
    storage.write_text(uri, "grün")
    assert storage.read_text(uri) == "grün"
    assert os.listdir(tmp_path / "new" / "folder") == ["file"]


def test_a_failed_write_leaves_the_old_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "file")
    storage.write_text(uri, "old")

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left"):
        storage.write_text(uri, "new")
    assert os.listdir(tmp_path) == ["file"]
    assert storage.read_text(uri) == "old"


def test_files_are_listed_recursively_sorted_with_size_and_a_version_that_changes(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a", "b.txt"):
        storage.write_text(str(tmp_path / name), name)
    files = list(storage.list_files(str(tmp_path)))
    assert [file.uri for file in files] == sorted(str(tmp_path / name) for name in ("b/2", "b/1", "a", "b.txt"))
    assert [file.size for file in files] == [len(file.uri.removeprefix(f"{tmp_path}/")) for file in files]
    storage.write_text(str(tmp_path / "a"), "longer")
    assert next(storage.list_files(str(tmp_path))).version != files[0].version


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    storage.write_text(str(tmp_path / "elsewhere" / "image"), "")
    (tmp_path / "root" / "class").mkdir(parents=True)
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "class" / "circle").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "class" / "nowhere").symlink_to(tmp_path / "gone")
    listed = [file.uri.removeprefix(f"{tmp_path}/root/") for file in storage.list_files(str(tmp_path / "root"))]
    assert listed == ["class/nowhere", "linked/image"]


@pytest.mark.parametrize("operation", [storage.read_bytes, lambda uri: list(storage.list_files(uri))])
def test_what_is_missing_is_named(operation: object, tmp_path: Path) -> None:
    assert callable(operation)
    with pytest.raises(storage.NotFoundError, match=f"^{tmp_path}/nothing does not exist$"):
        operation(str(tmp_path / "nothing"))


def test_a_local_copy_of_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(storage.NotFoundError), storage.local_copy(str(tmp_path / "nothing")):
        pass


def test_a_file_where_a_folder_is_needed_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for operation in (
        lambda: storage.write_text(str(tmp_path / "file" / "below"), ""),
        lambda: list(storage.list_files(str(tmp_path / "file"))),
    ):
        with pytest.raises(StorageError, match="is a file where a folder is needed"):
            operation()
    assert not storage.exists(str(tmp_path / "file" / "below"))


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    assert not storage.exists(str(tmp_path))
    with pytest.raises(StorageError, match="is a folder, not a file"):
        storage.read_bytes(str(tmp_path))


@pytest.mark.parametrize(
    ("number", "said"), [(errno.EACCES, "permission denied"), (errno.EROFS, "Read-only"), (errno.EIO, "Input/output")]
)
def test_refusals_of_the_system_become_one_line(
    number: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(StorageError, match=said) as caught:
        storage.check_writable(str(tmp_path))
    assert str(caught.value).startswith(f"cannot write to {tmp_path}: ")
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(StorageError, match="UTF-8"):
        storage.read_text(str(tmp_path / "image"))


def test_a_check_leaves_nothing_behind(tmp_path: Path) -> None:
    storage.check_writable(str(tmp_path))
    assert not os.listdir(tmp_path)


def test_deleting_twice_is_no_error(tmp_path: Path) -> None:
    storage.write_text(str(tmp_path / "file"), "")
    storage.delete(str(tmp_path / "file"))
    storage.delete(str(tmp_path / "file"))
    assert not storage.exists(str(tmp_path / "file"))


@pytest.mark.parametrize("links_work", [True, False])
def test_one_of_sixteen_racing_writers_wins(links_work: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links_work:

        def refuse(source: object, target: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    uri, start = str(tmp_path / "prize"), threading.Barrier(16)

    def race(number: int) -> bool:
        start.wait()
        return storage.create_exclusive(uri, f"writer {number}".encode())

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(race, range(16)))
    assert won.count(True) == 1
    assert storage.read_text(uri) == f"writer {won.index(True)}"
    assert os.listdir(tmp_path) == ["prize"]


def test_a_folder_is_copied_with_all_below_it(tmp_path: Path) -> None:
    storage.write_text(str(tmp_path / "from" / "a"), "1")
    storage.write_text(str(tmp_path / "from" / "deep" / "b"), "2")
    storage.upload_folder(tmp_path / "from", str(tmp_path / "to"))
    assert storage.read_text(str(tmp_path / "to" / "a")) == "1"
    assert storage.read_text(str(tmp_path / "to" / "deep" / "b")) == "2"


def test_the_local_copy_of_a_local_file_is_itself(tmp_path: Path) -> None:
    storage.write_text(str(tmp_path / "file"), "")
    with storage.local_copy(str(tmp_path / "file")) as path:
        assert path == tmp_path / "file"


def test_pyarrow_gets_local_paths_as_they_are(tmp_path: Path) -> None:
    filesystem, path = storage.pyarrow_filesystem(str(tmp_path))
    assert isinstance(filesystem, pyarrow.fs.LocalFileSystem)
    assert filesystem.get_file_info(path).is_file is False


def test_a_download_is_a_copy_of_the_file(tmp_path: Path) -> None:
    storage.write_text(str(tmp_path / "from"), "1")
    storage.download(str(tmp_path / "from"), tmp_path / "to")
    assert (tmp_path / "to").read_text() == "1"
    with pytest.raises(storage.NotFoundError):
        storage.download(str(tmp_path / "nothing"), tmp_path / "to")


def test_files_are_listed_with_the_time_they_were_written(tmp_path: Path) -> None:
    storage.write_text(str(tmp_path / "file"), "")
    os.utime(tmp_path / "file", (1, 1_700_000_000))
    assert next(storage.list_files(str(tmp_path))).modified == 1_700_000_000


def test_a_file_that_vanishes_while_its_folder_is_listed_is_not_listed(tmp_path: Path) -> None:
    for name in "abc":
        storage.write_text(str(tmp_path / name), "")
    listing = storage.list_files(str(tmp_path))
    first = next(listing)
    (tmp_path / "b").unlink()
    assert [file.uri for file in (first, *listing)] == [str(tmp_path / name) for name in "ac"]


@pytest.mark.parametrize("said", [0, 2, 5, 9])
def test_a_local_file_is_read_to_its_end_whatever_size_it_said_it_had(
    said: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that grows meanwhile, or one of /proc, which says 0."""
    (tmp_path / "file").write_bytes(b"12345")
    values = list(os.stat(tmp_path / "file"))
    values[stat.ST_SIZE] = said
    monkeypatch.setattr(os, "fstat", lambda file: os.stat_result(values))
    assert storage.read_bytes(str(tmp_path / "file")) == b"12345"


def test_an_empty_local_file_is_read_as_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert storage.read_bytes(str(tmp_path / "file")) == b""


def test_a_local_file_is_read_in_ranges(tmp_path: Path) -> None:
    uri = str(tmp_path / "file")
    storage.write_bytes(uri, bytes(range(100)))
    assert storage.read_range(uri, 10, 20) == bytes(range(10, 30))
    assert storage.read_range(uri, 100, 0) == b""
    with pytest.raises(StorageError, match=f"^{uri} has 100 bytes, too few for 20 bytes from byte 90 on$"):
        storage.read_range(uri, 90, 20)
    with storage.open_file(uri) as file:
        assert file.seek(-1, os.SEEK_END) == 99
        assert file.read() == b"c"


@pytest.mark.parametrize(
    "read",
    [storage.read_bytes, lambda uri, version: storage.read_range(uri, 0, 3, version)],
    ids=["read_bytes", "read_range"],
)
def test_a_local_file_that_changed_or_vanished_since_it_was_listed_is_said_to_have(read: Any, tmp_path: Path) -> None:
    uri = str(tmp_path / "file")
    storage.write_bytes(uri, b"old")
    (info,) = storage.list_files(str(tmp_path))
    assert read(uri, info.version) == b"old"
    storage.write_bytes(uri, b"newer")
    with pytest.raises(storage.ChangedError, match=f"^{uri} has changed since it was listed .version {info.version} "):
        read(uri, info.version)
    storage.delete(uri)
    with pytest.raises(storage.NotFoundError, match=f"^{uri} does not exist$"):
        read(uri, info.version)


def test_a_file_that_is_written_to_while_it_is_read_is_said_to_have_changed(tmp_path: Path) -> None:
    """Some programs write in place; what was read is then neither the old file nor the new one."""
    uri = str(tmp_path / "file")
    storage.write_bytes(uri, b"old")
    (info,) = storage.list_files(str(tmp_path))
    descriptor = os.open(uri, os.O_RDWR)
    os.pwrite(descriptor, b"newer", 0)
    os.close(descriptor)
    os.utime(uri, ns=(0, int(info.version.partition("-")[0])))  # at the same time, by a coarse clock
    with pytest.raises(storage.ChangedError):
        storage.read_bytes(uri, info.version)


def test_local_files_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = ["a-b", "a/b", "a.jpg", "a/b-c", "a/b.d/e", "a0", "A/z", "é/1", "b", "b-/c", "b.", "c d/e", "c/d"]
    for name in names:
        if name not in ("a/b", "b"):
            storage.write_text(str(tmp_path / name), "")
    listed = [info.uri for info in storage.list_files(str(tmp_path))]
    assert listed == sorted(str(tmp_path / name) for name in names if name not in ("a/b", "b"))
    with_slash = [info.uri for info in storage.list_files(f"{tmp_path}/")]
    assert with_slash == listed


def test_a_local_listing_begins_before_it_has_seen_every_folder(tmp_path: Path) -> None:
    for name in ("a/1", "b/1"):
        storage.write_text(str(tmp_path / name), "")
    listing = storage.list_files(str(tmp_path))
    assert next(listing).uri == str(tmp_path / "a" / "1")
    storage.write_text(str(tmp_path / "b" / "2"), "")
    (tmp_path / "b" / "1").unlink()
    assert [info.uri for info in listing] == [str(tmp_path / "b" / "2")]


def test_links_that_lead_to_themselves_are_listed_and_folders_that_vanish_are_not(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    storage.write_text(str(tmp_path / "a"), "")
    (tmp_path / "gone").mkdir()
    listing = storage.list_files(str(tmp_path))
    assert next(listing).uri == str(tmp_path / "a")
    (tmp_path / "gone").rmdir()
    assert [info.uri for info in listing] == [str(tmp_path / "loop")]
