import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.codec.columns import ColumnRans
from fairway.codec.general import Brotli, Lzma
from fairway.codec.smallest import Smallest
from fairway.codec.zstd import Zstd
from fairway.problem import Problem

CODECS = [Zstd(level=3), Brotli(quality=5), Lzma(preset=1)]
LAYOUT = [(np.dtype(np.int8), (700,))]
CODES = np.rint(np.random.default_rng(0).normal(size=700) * 3).astype(np.int8)
EACH = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)


@EACH
@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from([np.int8, np.float16, np.float32]),
    shapes=st.lists(st.sampled_from([(), (0,), (5,), (3, 8), (2, 0, 3)]), max_size=3),
    fill=st.binary(min_size=96, max_size=96),
)
def test_arrays_come_back_and_the_frame_is_the_same_twice(codec, dtype, shapes, fill):
    size = np.dtype(dtype).itemsize
    arrays = [
        np.frombuffer(fill, dtype, int(np.prod(shape))).reshape(shape) for shape in shapes if np.prod(shape) * size <= 96
    ]
    frame = codec.encode(arrays)
    back = codec.decode(frame, [(array.dtype, array.shape) for array in arrays])
    assert [(one.dtype, one.shape, one.tobytes()) for one in arrays] == [
        (one.dtype, one.shape, one.tobytes()) for one in back
    ]
    assert codec.encode(arrays) == frame


@EACH
def test_bytes_of_one_weight_lie_together(codec):
    values = (1 + np.random.default_rng(0).random(20_000)).astype(np.float16)
    assert len(codec.encode([values])) < len(codec.encode([values.view(np.uint8)]))


@EACH
@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 10**6), tail=st.binary(min_size=1, max_size=4))
def test_a_cut_or_a_longer_frame_is_a_problem(codec, cut, tail):
    frame = codec.encode([CODES])
    for wrong in (frame[: cut % len(frame)], frame + tail):
        with pytest.raises(Problem):
            codec.decode(wrong, LAYOUT)


@EACH
@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10**6), value=st.integers(1, 255), noise=st.binary(max_size=60))
def test_broken_frames_are_refused_or_give_the_stated_arrays(codec, place, value, noise):
    frame = bytearray(codec.encode([CODES]))
    frame[place % len(frame)] ^= value
    for wrong in (bytes(frame), noise):
        try:
            (array,) = codec.decode(wrong, LAYOUT)
        except Problem:
            continue
        assert (array.dtype, array.shape) == LAYOUT[0]


@EACH
@pytest.mark.parametrize("count", [0, 699, 701])
def test_a_frame_of_another_size_is_a_problem(codec, count):
    with pytest.raises(Problem):
        codec.decode(codec.encode([CODES]), [(np.dtype(np.int8), (count,))])


@EACH
def test_a_frame_that_would_fill_the_memory_does_not(codec):
    bomb = codec.encode([np.zeros(20_000_000, np.int8)])
    tracemalloc.start()
    try:
        with pytest.raises(Problem):
            codec.decode(bomb, LAYOUT)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


@EACH
def test_a_long_run_comes_back_whole(codec):
    zeros = np.zeros(3_000_000, np.int8)
    (back,) = codec.decode(codec.encode([zeros]), [(zeros.dtype, zeros.shape)])
    assert not back.any() and back.size == zeros.size


@EACH
def test_measure_is_the_frames_size_and_shares_it_by_entropy(codec):
    flat, wide = np.tile(CODES // 4, 20), np.tile(CODES, 20)
    first, second = codec.measure([flat, wide])
    assert first + second == pytest.approx(len(codec.encode([flat, wide]))) and second > 1.5 * first


@pytest.mark.parametrize(
    "node, field, values", [(Brotli, "quality", (-1, 12)), (Lzma, "preset", (-1, 10)), (Zstd, "level", (0, 23))]
)
def test_a_level_that_does_not_exist_is_refused(node, field, values):
    least, greatest = values
    for value in values:
        with pytest.raises(Problem, match=f"{node.__name__}.{field} is {value}: take {least + 1} to {greatest - 1}"):
            node(**{field: value})
    for value in (least + 1, greatest - 1):
        assert getattr(node(**{field: value}), field) == value


@pytest.mark.parametrize("codec, package", [(Brotli(), "brotli"), (Zstd(), "zstandard")])
def test_an_absent_package_is_named(monkeypatch, codec, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Problem, match=f"pip install {package}"):
        codec.encode([CODES])


def test_the_smallest_frame_is_kept_and_read_by_its_tag():
    rng = np.random.default_rng(0)
    codes, text = np.rint(rng.normal(size=(400, 128)) * 3).astype(np.int8), np.frombuffer(b"the same words " * 200, np.uint8)
    codec = Smallest(codecs=(ColumnRans(), Lzma()))
    for array, tag in ((codes, ColumnRans.tag), (text, Lzma.tag)):
        frame = codec.encode([array])
        assert frame[0] == tag
        assert len(frame) == 1 + min(len(one.encode([array])) for one in codec.codecs)
        assert (codec.decode(frame, [(array.dtype, array.shape)])[0] == array).all()
    assert codec.measure([codes]) == ColumnRans().measure([codes])


def test_a_frame_of_a_codec_that_the_recipe_lacks_is_a_problem():
    frame = Smallest(codecs=(Lzma(),)).encode([CODES])
    for wrong in (frame, b""):
        with pytest.raises(Problem, match="not one of Smallest"):
            Smallest(codecs=(ColumnRans(),)).decode(wrong, LAYOUT)


def test_a_choice_of_none_is_refused_and_tags_differ():
    with pytest.raises(Problem, match="is empty"):
        Smallest(codecs=())
    assert len({node.tag for node in (Zstd, Brotli, Lzma, ColumnRans, Smallest)}) == 5
