"""The slot header: any difference from what was announced is found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.errors import Corrupt, SlotGone, TransferError
from transfer.header import HEADER_BYTES, RELEASED, Header

u64 = st.integers(0, (1 << 64) - 1)
headers = st.builds(Header, u64, u64, u64)


@given(headers, headers)
def test_only_the_very_header_passes(announced: Header, found: Header) -> None:
    assert len(found.pack()) == HEADER_BYTES
    announced.check(announced.pack())
    if found != announced:
        with pytest.raises(TransferError):
            announced.check(found.pack())


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (RELEASED, SlotGone),
        (Header(8, 100, 5).pack(), SlotGone),
        (Header(7, 101, 5).pack(), Corrupt),
        (Header(7, 100, 6).pack(), Corrupt),
        (b"GARBAGE!" + Header(7, 100, 5).pack()[8:], Corrupt),
    ],
)
def test_kinds_of_failure(found: bytes, error: type[TransferError]) -> None:
    with pytest.raises(error):
        Header(7, 100, 5).check(found)
