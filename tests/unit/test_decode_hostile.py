"""A folder of odd and broken files: each is decoded to the right pixels, or refused with a reason, by every way in."""

import numpy as np
import pytest

from tests.hostile_images import Hostile, every_case
from tlray.data.decode import BadImageError, check, decode

CASES = every_case()
WITH_PIXELS = [case for case in CASES if case.pixels is not None]
BROKEN = [case for case in CASES if case.pixels is None]


def ids(case: Hostile) -> str:
    return case.name


def test_the_folder_holds_more_than_forty_kinds_each_once() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 150
    assert all((case.pixels is None) == bool(case.reason) for case in CASES)


@pytest.mark.parametrize("case", WITH_PIXELS, ids=ids)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of EXIF blocks that make no sense
def test_an_odd_image_has_the_right_pixels(case: Hostile) -> None:
    pixels = decode(case.data)
    assert case.pixels is not None
    assert (pixels.shape, pixels.dtype) == (case.pixels.shape, np.uint8)
    assert np.abs(pixels.astype(int) - case.pixels.astype(int)).max() <= case.tolerance
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous
    assert check(case.data) == pixels.shape[:2]
    assert check(memoryview(case.data)) == pixels.shape[:2]
    np.testing.assert_array_equal(decode(memoryview(case.data)), pixels)
    np.testing.assert_array_equal(decode(case.data, (16, 16)), pixels)  # small: never reduced


@pytest.mark.parametrize("case", BROKEN, ids=ids)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_broken_file_is_refused_with_a_short_reason_by_decode_and_by_check(case: Hostile) -> None:
    with pytest.raises(BadImageError, match=case.reason) as caught:
        decode(case.data)
    reason = caught.value.reason
    assert 0 < len(reason) < 160
    assert "\n" not in reason
    for other in (lambda: check(case.data), lambda: decode(case.data, (8, 8)), lambda: decode(memoryview(case.data))):
        with pytest.raises(BadImageError) as again:
            other()
        assert again.value.reason == reason
