import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fairway.codec.columns import FIXED, ColumnRans, ColumnSpread, magnitude_levels, next_states
from fairway.codec.planes import order0_bits
from fairway.problem import Problem

CODEC = ColumnRans()


def layouts_of(arrays):
    return [(array.dtype, array.shape) for array in arrays]


def returns(arrays, trellis=False):
    """The frame, after it has come back as it was."""
    frame = CODEC.encode(arrays, trellis)
    back = CODEC.decode(frame, layouts_of(arrays), trellis)
    for one, other in zip(arrays, back, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return frame


def gaussian_codes(rows, columns, std, spread, seed=0, row_spread=0.0):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(rows, columns)) * np.exp(spread * rng.normal(size=columns))
    weight *= std * np.exp(row_spread * rng.normal(size=(rows, 1))) / np.sqrt((weight**2).mean(1, keepdims=True))
    return np.clip(np.rint(weight), -127, 127).astype(np.int8)


def path_codes(rows, columns, seed=0):
    """Codes of no mean whose two sets differ in spread, on the paths that the trellis allows."""
    rng = np.random.default_rng(seed)
    state, codes = np.zeros(columns, np.int64), np.empty((rows, columns), np.int8)
    for row in codes:
        row[:] = np.rint(rng.normal(size=columns) * np.where(state & 1, 1.2, 3.0))
        state = (2 * state & 7) | ((row & 1) ^ ((state >> 1) & 1) ^ (state >> 2))
    return codes


@st.composite
def sections(draw):
    """Arrays of one dtype, of few or all values, plain or wild, some empty."""
    dtype = draw(st.sampled_from([np.int8, np.uint8, np.float16, np.float32]))
    shapes = st.one_of(hnp.array_shapes(max_dims=3, min_side=0, max_side=40), st.just((3, 70)), st.just((130, 33)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale, arrays = draw(st.sampled_from([0, 0.5, 3, 60, 1000])), []
    for shape in draw(st.lists(shapes, max_size=4)):
        values = rng.normal(size=shape) * scale
        arrays.append(values.astype(dtype) if np.dtype(dtype).kind == "f" else values.astype(np.int64).astype(dtype))
    return arrays


@settings(max_examples=40, deadline=None)
@given(arrays=sections(), trellis=st.booleans())
def test_arrays_come_back_and_the_frame_is_the_same_twice(arrays, trellis):
    assert returns(arrays, trellis) == CODEC.encode(arrays, trellis)


@settings(max_examples=60, deadline=None)
@given(array=hnp.arrays(st.sampled_from([np.int8, np.uint8, np.float16]), hnp.array_shapes(max_dims=2, min_side=0)))
def test_adversarial_values_come_back(array):
    returns([array])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((500, 64), np.int8),
        np.full((500, 64), -128, np.int8),
        np.tile(np.arange(256, dtype=np.uint8).view(np.int8), (40, 1)),
        np.arange(2000, dtype=np.int64).astype(np.int8)[None],
        np.arange(2000, dtype=np.int64).astype(np.int8)[:, None],
        np.array(3, np.int8),
    ],
    ids=["constant", "lowest", "all values", "one row", "one column", "a number"],
)
@pytest.mark.parametrize("trellis", [False, True])
def test_degenerate_arrays_come_back(array, trellis):
    returns([array, array], trellis)


def test_a_constant_section_takes_next_to_nothing():
    assert len(returns([np.full((500, 512), 7, np.int8)])) < 130


def test_codes_whose_columns_spread_come_under_their_order0_entropy_with_all_side_information():
    matrices = [gaussian_codes(1024, 512, 31 / 12.85, 0.10, seed) for seed in range(4)]
    assert len(returns(matrices)) <= 0.9985 * order0_bits(np.concatenate(matrices)) / 8
    table = [gaussian_codes(4096, 512, 127 / 20, 0.14)]
    assert len(CODEC.encode(table)) <= 0.997 * order0_bits(table[0]) / 8


def test_columns_that_every_tensor_shares_are_carried_from_one_to_the_next():
    shared = np.exp(0.3 * np.random.default_rng(5).normal(size=512))
    rng = np.random.default_rng(6)
    matrices = [np.rint(rng.normal(size=(64, 512)) * 3 * shared).astype(np.int8) for _ in range(12)]
    apart = sum(len(CODEC.encode([matrix])) for matrix in matrices)
    assert len(returns(matrices)) < 0.985 * apart


def test_rows_that_spread_are_told_and_rows_that_do_not_are_not():
    alike, apart = gaussian_codes(600, 512, 3, 0.0), gaussian_codes(600, 512, 3, 0.0, row_spread=0.25)
    settings_byte = struct.calcsize("<IB")
    assert not CODEC.encode([alike])[settings_byte] >> 7
    frame = returns([apart])
    assert frame[settings_byte] >> 7
    assert len(frame) < 0.988 * order0_bits(apart) / 8


def test_codes_on_trellis_paths_are_shorter_when_the_coder_knows():
    paths = [path_codes(300, 256, seed) for seed in range(3)]
    assert len(returns(paths, True)) < 0.95 * len(returns(paths, False))


def test_the_trellis_moves_as_its_quantiser_does():
    for state in range(8):
        for parity in range(2):
            flip = ((state >> 1) & 1) ^ (state >> 2)
            assert next_states()[2 * state + parity] == ((2 * state) & 7) | (parity ^ flip)


def test_float16_noise_does_not_grow_and_its_high_bytes_shrink():
    values = np.random.default_rng(0).normal(size=(300, 400)).astype(np.float16)
    noise = np.random.default_rng(1).integers(0, 256, (300, 400), np.uint8)
    assert len(returns([noise])) <= 1.001 * noise.size
    assert len(returns([values])) < 0.85 * values.nbytes


def test_vectors_of_different_medians_share_their_tables():
    rng = np.random.default_rng(2)
    vectors = [np.rint(rng.normal(size=2048) * 3 + middle).astype(np.uint8) for middle in (40, 90, 150, 210)]
    assert len(returns(vectors)) < 0.8 * order0_bits(np.concatenate(vectors)) / 8


@pytest.mark.parametrize("trellis", [False, True])
@pytest.mark.parametrize("row_spread", [0.0, 0.2])
def test_measure_knows_the_frame_within_two_in_a_thousand(trellis, row_spread):
    arrays = [gaussian_codes(512, 384, std, 0.1, row_spread=row_spread) for std in (2.4, 2.4, 4.0)]
    measured, frame = CODEC.measure(arrays, trellis), CODEC.encode(arrays, trellis)
    assert sum(measured) == pytest.approx(len(frame), rel=0.002)
    assert measured[2] > 1.1 * measured[1] and len(measured) == 3


def test_measure_of_noise_constants_and_nothing():
    noise = np.random.default_rng(1).integers(0, 256, 200_000, np.uint8)
    assert sum(CODEC.measure([noise])) == pytest.approx(noise.size, rel=0.002)
    assert sum(CODEC.measure([np.zeros(10**5, np.int8)])) < 200
    assert CODEC.measure([]) == [] and CODEC.measure([np.zeros(0, np.int8)]) == [0.0]


def test_no_level_lies_near_a_half_so_every_machine_rounds_alike():
    exact = 32 + 16 * np.log2(np.arange(16, 1 << 15) / 16)
    assert np.abs(exact % 1 - 0.5).min() > 1e-6
    assert magnitude_levels().min() == 32 and magnitude_levels().max() == 208


def test_a_columns_mean_is_that_of_the_rows_above_beside_what_it_began_with():
    spread = ColumnSpread(2, 512, False)  # begins with the weight of 32 rows, forgets nothing
    spread.open(3)
    for _ in range(4):
        spread.fold(np.tile(np.array([128, 129, 120], np.uint8), (8, 1)))
    assert spread.mean_C / 2**16 == pytest.approx([1.0, 1.5, 5.0], abs=1e-3)


def problem_or_arrays(frame, layouts, trellis=False):
    """Whether the frame was refused; what it gave otherwise has its layouts."""
    try:
        arrays = CODEC.decode(frame, layouts, trellis)
    except Problem:
        return True
    assert [(array.dtype, array.shape) for array in arrays] == layouts
    return False


CODES = gaussian_codes(300, 96, 3, 0.2, row_spread=0.3)
FRAME = CODEC.encode([CODES])
HEAD = struct.unpack_from(FIXED, FRAME, 4)


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, len(FRAME) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_wherever_it_reaches_the_stream(place, bit):
    frame = bytearray(FRAME)
    frame[place] ^= 1 << bit
    refused = problem_or_arrays(bytes(frame), layouts_of([CODES]))
    assert refused or place < 4 + struct.calcsize(FIXED) + HEAD[-2] + HEAD[-1]


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, len(FRAME) - 1), tail=st.binary(min_size=1, max_size=4))
def test_a_cut_or_a_longer_frame_is_a_problem(cut, tail):
    for wrong in (FRAME[:cut], FRAME + tail):
        with pytest.raises(Problem):
            CODEC.decode(wrong, layouts_of([CODES]))


@settings(max_examples=80, deadline=None)
@given(noise=st.binary(max_size=400), lead=st.booleans())
def test_noise_is_refused_or_gives_the_stated_arrays(noise, lead):
    problem_or_arrays(struct.pack("<I", len(noise)) * lead + noise, [(np.dtype(np.int8), (9, 40))])


@pytest.mark.parametrize("shape", [(299, 96), (301, 96), (300, 95), (300, 128), (0, 96)])
def test_another_shape_is_a_problem(shape):
    with pytest.raises(Problem):
        CODEC.decode(FRAME, [(np.dtype(np.int8), shape)])


def test_a_raw_plane_of_another_size_is_a_problem():
    noise = np.random.default_rng(0).integers(0, 256, 300, np.uint8)
    with pytest.raises(Problem, match="300 bytes where 301 are due"):
        CODEC.decode(CODEC.encode([noise]), [(np.dtype(np.uint8), (301,))])


def test_heads_that_lie_eat_no_memory_and_no_time():
    side = zlib.compress(bytes(10**8), 9, -15)  # a bomb
    lies = [
        (1, 127, *HEAD[2:]),
        (*HEAD[:5], 2**32 - 1, 0),
        (*HEAD[:6], 2**32 - 1),
        (*HEAD[:3], 255, *HEAD[4:]),
    ]
    frames = [struct.pack(FIXED, *lie) + FRAME[4 + struct.calcsize(FIXED) :] for lie in lies]
    frames.append(struct.pack(FIXED, 1, 0, 9, 0, 255, len(side), 0) + side)
    tracemalloc.start()
    try:
        for frame in frames:
            with pytest.raises(Problem):
                CODEC.decode(struct.pack("<I", len(frame)) + frame, layouts_of([CODES]))
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_frame_of_little_that_states_much_is_refused_at_once():
    frame = CODEC.encode([np.zeros((4, 512), np.int8)])
    for shape in ((2**30,), (2**21, 512)):
        with pytest.raises(Problem, match="no honest model"):
            CODEC.decode(frame, [(np.dtype(np.int8), shape)])


def test_a_constant_that_is_denser_than_a_frame_may_be_is_kept_raw(monkeypatch):
    monkeypatch.setattr("fairway.codec.columns.GREATEST_DENSITY", 8)
    assert len(returns([np.zeros((64, 64), np.int8)])) == 4 + 1 + 64 * 64
