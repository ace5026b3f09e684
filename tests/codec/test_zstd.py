import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.codec.zstd import Zstd
from fairway.problem import Problem


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=2000), level=st.integers(1, 22))
def test_bytes_come_back_and_the_frame_is_the_same_twice(data, level):
    frame = Zstd(level=level).compress(data)
    assert Zstd.decompress(frame, len(data)) == data
    assert Zstd(level=level).compress(data) == frame


def test_the_densest_frame_is_still_accepted():
    data = bytes(20_000_000)
    assert Zstd.decompress(Zstd(level=1).compress(data), len(data)) == data


@settings(max_examples=100, deadline=None)
@given(data=st.binary(min_size=1, max_size=300), cut=st.integers(0, 10**6), tail=st.binary(min_size=1, max_size=4))
def test_a_cut_or_a_longer_frame_is_a_problem(data, cut, tail):
    frame = Zstd(level=3).compress(data)
    for wrong in (frame[: cut % len(frame)], frame + tail):
        with pytest.raises(Problem):
            Zstd.decompress(wrong, len(data))


def test_a_frame_of_another_size_is_a_problem():
    frame = Zstd(level=3).compress(b"fairway" * 100)
    for size in (0, 699, 701, 2**60):
        with pytest.raises(Problem, match=f"states 700 where {size} are due"):
            Zstd.decompress(frame, size)


def test_a_frame_that_lies_about_its_size_eats_no_memory():
    size = 2**33
    empty_last_block = b"\x01\x00\x00"
    frame = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size) + empty_last_block
    tracemalloc.start()
    try:
        with pytest.raises(Problem):
            Zstd.decompress(frame, size)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("level", [0, 23])
def test_a_level_that_zstd_does_not_have_is_refused(level):
    with pytest.raises(Problem, match=f"level is {level}"):
        Zstd(level=level)
