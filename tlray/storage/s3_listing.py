"""Listings of S3, sorted and streamed: page after page, or several stretches of the key space side by side.

    for info in list_files("s3://bucket/images", num_threads=16): ...

A listing that fits in one page costs one request. For a longer one with several threads, the folders (common prefixes)
say where it can be cut into stretches, which are then listed each by itself and given out in order. Where the cuts lie
is of no importance for what is listed. What is held in memory does not grow with the listing: for each thread the next
PAGES_AHEAD pages of its stretch. A flat folder cannot be cut, and is listed page after page.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

from tlray.storage.s3_errors import bucket_and_key, one_line_errors
from tlray.storage.s3_listing_parser import OBJECTS, PREFIXES
from tlray.storage.s3_retry import with_retries
from tlray.storage.types import FileInfo

PAGE = 1000  # names, more than which no server gives at once
PAGES_AHEAD = 4  # of each stretch
MOST_LEVELS = 3  # of folders that are looked at for places to cut
OBJECTS_PER_STRETCH = 4000  # at least, roughly: a stretch reads up to a page past its end
FEWEST_PER_FOLDER = 4  # with fewer objects than that in a folder, looking for folders costs as much as it saves


@dataclass(frozen=True)
class _Stretch:
    """The keys after `after` and before `before` (None: to the end); `token` continues it from a page's end."""

    after: str
    before: str | None
    token: str | None = None


@dataclass(frozen=True)
class _Page:
    files: list[FileInfo]
    last_key: str
    token: str | None  # None: there is no further page


def list_files(uri: str, num_threads: int = 1) -> Iterator[FileInfo]:
    """Every object below a prefix in the order of its key; those that only stand for a folder are left out."""
    listing = _Listing(uri)
    first = listing.page()
    yield from first.files
    if first.token is None:
        return
    with ThreadPoolExecutor(num_threads, thread_name_prefix="tlray-listing") as pool:
        if num_threads == 1 or not first.last_key:
            stretches = iter([_Stretch(first.last_key, None, first.token)])
        else:
            stretches = listing.stretches(first.last_key, pool, num_threads)
        yield from _in_order(listing, stretches, pool, num_threads)


def list_folders(uri: str) -> list[str]:
    """The names of the common prefixes right below a prefix, sorted."""
    return _Listing(uri).folders()


def _in_order(
    listing: "_Listing", stretches: Iterator[_Stretch], pool: ThreadPoolExecutor, num_threads: int
) -> Iterator[FileInfo]:
    """The files of all stretches, of which the next `num_threads` are being listed."""
    waiting: deque[Future[tuple[list[_Page], _Stretch | None]]] = deque()
    try:
        while True:
            for stretch in islice(stretches, num_threads - len(waiting)):
                waiting.append(pool.submit(listing.some_pages, stretch))
            if not waiting:
                return
            pages, rest = waiting.popleft().result()
            if rest is not None:
                waiting.appendleft(pool.submit(listing.some_pages, rest))
            for page in pages:
                yield from page.files
    finally:
        for one in waiting:
            one.cancel()


def _objects_per_folder(folders: list[str]) -> int:
    """An estimate from the names of all folders that the first page of the listing reached."""
    innermost = sum(not after.startswith(name) for name, after in pairwise([*folders, ""]))
    return PAGE // max(1, innermost)


class _Listing:
    """Requests for one prefix."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._bucket, key = bucket_and_key(uri)
        self._prefix = f"{key.rstrip('/')}/" if key else ""

    def page(self, stretch: _Stretch = _Stretch("", None)) -> _Page:
        place = {"ContinuationToken": stretch.token} if stretch.token else {"StartAfter": stretch.after}
        answer = self._ask(Prefix=self._prefix, **place)
        objects = answer[OBJECTS]
        last_key = objects[-1][0] if objects else stretch.after
        token = answer.get("NextContinuationToken")
        if stretch.before is not None and last_key >= stretch.before:
            objects = [one for one in objects if one[0] < stretch.before]
            token = None
        files = [
            FileInfo(f"s3://{self._bucket}/{key}", size, modified, etag)
            for key, size, modified, etag in objects
            if not key.endswith("/")  # such an empty object only stands for a folder
        ]
        return _Page(files, last_key, token)

    def folders(self) -> list[str]:
        names: list[str] = []
        place: dict[str, str] = {}
        while True:
            answer = self._ask(Prefix=self._prefix, Delimiter="/", **place)
            names += answer[PREFIXES]
            if (token := answer.get("NextContinuationToken")) is None:
                return sorted(name.removeprefix(self._prefix).rstrip("/") for name in names)
            place = {"ContinuationToken": token}

    def some_pages(self, stretch: _Stretch) -> tuple[list[_Page], _Stretch | None]:
        """The next pages of a stretch, and what then remains of it."""
        pages: list[_Page] = []
        for _ in range(PAGES_AHEAD):
            page = self.page(stretch)
            pages.append(page)
            if page.token is None:
                return pages, None
            stretch = _Stretch(page.last_key, stretch.before, page.token)
        return pages, stretch

    def stretches(self, after: str, pool: ThreadPoolExecutor, num_threads: int) -> Iterator[_Stretch]:
        """All keys after `after`, in order; `after` is the last key of the listing's first page."""
        begin, per_folder = after, 0
        for cuts in self._cuts(pool, num_threads):
            per_folder = per_folder or _objects_per_folder([cut for cut in cuts if cut < after])
            if per_folder < FEWEST_PER_FOLDER:
                break
            wanted = 1 if per_folder >= PAGE else -(-OBJECTS_PER_STRETCH // per_folder)
            every = max(1, min(wanted, -(-len(cuts) // (2 * num_threads))))
            for cut in cuts[every - 1 :: every]:
                if cut > begin:
                    yield _Stretch(begin, cut)
                    begin = cut
        yield _Stretch(begin, None)

    def _cuts(self, pool: ThreadPoolExecutor, num_threads: int) -> Iterator[list[str]]:
        """Names of folders in order, a page of them at a time: those of the first level that has enough of them."""
        cuts, token = self._folders(self._prefix)
        below = cuts
        for _ in range(MOST_LEVELS - 1):
            if token is not None or not below or len(cuts) >= num_threads:
                break
            below = [name for names, _ in pool.map(self._folders, below) for name in names]
            cuts = sorted({*cuts, *below})
        yield cuts
        while token is not None:
            cuts, token = self._folders(self._prefix, token)
            yield cuts

    def _folders(self, prefix: str, token: str | None = None) -> tuple[list[str], str | None]:
        """The folders among the next names below a prefix, and how to go on where they are most of those."""
        place = {"ContinuationToken": token} if token else {}
        answer = self._ask(Prefix=prefix, Delimiter="/", **place)
        names: list[str] = sorted(answer[PREFIXES])
        goes_on = len(names) > len(answer[OBJECTS])
        return names, answer.get("NextContinuationToken") if goes_on else None

    def _ask(self, **arguments: Any) -> dict[str, Any]:
        with one_line_errors(self._uri):
            answer: dict[str, Any] = with_retries(
                self._bucket,
                lambda clients: clients.once.list_objects_v2(Bucket=self._bucket, MaxKeys=PAGE, **arguments),
            )
            return answer
