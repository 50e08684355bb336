"""Damaged headers of weights: read, or refused in one line; `python -m scripts.fuzz_weights` goes on with this."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scripts.fuzz_weights import GOOD, file_of, outcome

WHOLE = HealthCheck.function_scoped_fixture  # every example overwrites the same file
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of odd pickles

NUMBERS = st.integers(-(2**63), 2**64) | st.floats() | st.text(max_size=3) | st.none()
SHAPES = st.lists(NUMBERS, max_size=4) | NUMBERS
INFO = st.fixed_dictionaries({"dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "U64", "X"]) | NUMBERS})
ENTRY = st.builds(lambda info, shape, offsets: {**info, "shape": shape, "data_offsets": offsets}, INFO, SHAPES, SHAPES)
HEADERS = st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), ENTRY | NUMBERS, max_size=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@settings(max_examples=150, deadline=None, suppress_health_check=[WHOLE])
@given(number=st.integers(0, 10**9))
def test_a_damaged_file_is_read_or_refused_in_one_line(folder: Path, number: int) -> None:
    name, data = file_of(0, number)
    path = folder / name
    path.write_bytes(data)
    assert outcome(path) in GOOD


@settings(max_examples=150, deadline=None, suppress_health_check=[WHOLE])
@given(header=HEADERS, rest=st.binary(max_size=40), length=st.none() | st.integers(0, 2**64 - 1))
@example(header={"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}, rest=bytes(8), length=None)
def test_any_header_of_safetensors_is_read_or_refused_in_one_line(
    folder: Path, header: dict[str, Any], rest: bytes, length: int | None
) -> None:
    text = json.dumps(header).encode()
    path = folder / "w.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + rest)
    assert outcome(path) in GOOD


@settings(max_examples=100, deadline=None, suppress_health_check=[WHOLE])
@given(start=st.sampled_from([b"", b"PK\3\4", b"\x80\2", b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."]), rest=st.binary())
def test_any_bytes_are_read_or_refused_in_one_line(folder: Path, start: bytes, rest: bytes) -> None:
    path = folder / "w.pt"
    path.write_bytes(start + rest)
    assert outcome(path) in GOOD
