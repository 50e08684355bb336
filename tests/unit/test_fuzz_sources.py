"""Every reader of users' files, fed with damage: each file is read, or refused in one line; nothing else may happen.

More of the same: python -m scripts.fuzz_sources --count 100000
"""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hostile_sources import GOOD, damaged, originals, outcome
from tlray.data.litter import is_litter
from tlray.data.sources.label_files import LABEL_ENDINGS, class_of
from tlray.data.sources.parquet_footer import end_of_rows

FILES = originals()
FEW = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_read_or_refused_in_one_line(name: str, folder: Path) -> None:
    assert outcome(name, FILES[name], folder) == "read"

    @FEW
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        assert outcome(name, damaged(name, FILES, seed, 0), folder) in GOOD

    check()


@pytest.mark.parametrize("name", [name for name in FILES if name != "x.csv"])
def test_a_file_that_is_cut_anywhere_is_refused(name: str, folder: Path) -> None:
    # a tar file may lose zeros behind its two empty blocks
    end = len(FILES[name].rstrip(b"\0")) + 512 if name.endswith(".tar") else len(FILES[name])

    @FEW
    @given(st.integers(0, end - 1))
    def check(size: int) -> None:
        assert outcome(name, FILES[name][:size], folder) == "refused"

    check()


@pytest.mark.parametrize("name", [name for name in FILES if ".csv" not in name])
def test_a_file_with_something_behind_its_end_is_refused(name: str, folder: Path) -> None:
    @FEW
    @given(st.binary(min_size=1).filter(lambda data: data.strip(b"\0") != b""))
    def check(more: bytes) -> None:
        assert outcome(name, FILES[name] + more, folder) == "refused"

    check()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@FEW
@given(st.sampled_from(LABEL_ENDINGS), st.binary() | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_label_is_a_class_or_a_reason(ending: str, data: bytes) -> None:
    name, reason = class_of("0001", {ending: data}, "label")
    assert bool(name) != bool(reason)
    (name + reason).encode()


@settings(FEW, max_examples=200)
@given(st.binary())
def test_any_footer_has_an_end_or_is_damaged(footer: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(end_of_rows(footer), int)


@FEW
@given(st.text())
def test_a_path_is_litter_where_one_of_its_names_is(path: str) -> None:
    assert is_litter(path) == any(is_litter(name) for name in path.split("/"))
