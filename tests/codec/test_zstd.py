import struct
import tracemalloc

import numpy as np
import pytest

from fairway.codec.zstd import Zstd
from fairway.problem import Problem


def test_the_densest_frame_is_still_accepted():
    data = bytes(20_000_000)
    assert Zstd().expand(Zstd(level=1).compress(data), len(data)) == data


def test_a_frame_of_another_size_says_both():
    frame = Zstd(level=3).compress(b"fairway" * 100)
    for size in (0, 699, 701, 2**60):
        with pytest.raises(Problem, match=f"states 700 where {size} are due"):
            Zstd().expand(frame, size)


def test_a_frame_that_lies_about_its_size_eats_no_memory():
    size = 2**33
    empty_last_block = b"\x01\x00\x00"
    frame = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size) + empty_last_block
    tracemalloc.start()
    try:
        with pytest.raises(Problem):
            Zstd().decode(frame, [(np.dtype(np.int8), (size,))])
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
