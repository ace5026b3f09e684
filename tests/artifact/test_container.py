import json
import struct
import tracemalloc
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.artifact.container import (
    CONTAINER_MAGIC,
    HEADER_LIMIT,
    measure_container,
    read_container,
    write_container,
)
from fairway.codec.columns import ColumnRans
from fairway.codec.general import Lzma
from fairway.codec.smallest import Smallest
from fairway.model.roles import Leaf
from fairway.problem import Problem
from fairway.quantize.policy import assign_rules, quantise
from fairway.quantize.schemes import KeepFloat16, RowInt

DIGEST = "0123456789abcdef"
CODEC = ColumnRans()
LEAVES = [
    Leaf("inputs.table", "embedding", -1, (12, 4)),
    *(Leaf(f"blocks.{layer}.up", "matrix.up", layer, (6, 4)) for layer in range(3)),
    Leaf("blocks.0.gain", "scalar", 0, ()),
]
POLICY = (KeepFloat16(role="matrix", layers=(-1,)), RowInt(role="matrix"), KeepFloat16())


def small_codes():
    generator = torch.Generator().manual_seed(3)
    tensors = {leaf.name: torch.randn(leaf.shape, generator=generator) for leaf in LEAVES}
    return quantise(tensors, LEAVES, assign_rules(LEAVES, POLICY), {})


@pytest.fixture(scope="module")
def packed():
    return write_container(small_codes(), CODEC, DIGEST)[0]


def block(content):
    size = struct.pack("<I", len(content))
    return size + struct.pack("<I", zlib.crc32(size + content)) + content


def forged(header, sections=b""):
    return CONTAINER_MAGIC + block(zlib.compress(header)) + sections


def test_every_code_comes_back_with_its_scheme_role_and_shape(packed):
    codes, digest = read_container(packed, CODEC)
    assert digest == DIGEST
    assert list(codes) == [leaf.name for leaf in LEAVES]
    for name, one in small_codes().items():
        assert (codes[name].scheme, codes[name].role, codes[name].shape) == (one.scheme, one.role, one.shape)
        assert codes[name].parts.keys() == one.parts.keys()
        for part, tensor in one.parts.items():
            assert codes[name].parts[part].dtype == tensor.dtype
            assert torch.equal(codes[name].parts[part], tensor)


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 5), max_size=3), min_size=1, max_size=6),
    schemes=st.lists(
        st.sampled_from([KeepFloat16(), RowInt(bits=2), RowInt(bits=5), RowInt(bits=8)]), min_size=6, max_size=6
    ),
    codec=st.sampled_from([CODEC, Lzma(), Smallest((CODEC, Lzma()))]),
)
def test_any_mix_of_shapes_and_schemes_comes_back(shapes, schemes, codec):
    leaves = [Leaf(f"w{index}", f"matrix.m{index % 2}", -1, tuple(shape)) for index, shape in enumerate(shapes)]
    pairs = zip(leaves, schemes, strict=False)
    codes = {leaf.name: scheme.encode([torch.randn(leaf.shape)], [leaf], [None])[0] for leaf, scheme in pairs}
    data, owners = write_container(codes, codec, DIGEST)
    assert sum(owner["bytes"] for owner in owners) == len(data) and all(owner["bytes"] >= 0 for owner in owners)
    back, _ = read_container(data, codec)
    assert all(torch.equal(back[n].parts[p], t) for n, one in codes.items() for p, t in one.parts.items())


def test_owners_are_one_for_each_tensor_and_part_and_sum_to_the_file():
    data, owners = write_container(small_codes(), CODEC, DIGEST)
    assert sum(owner["bytes"] for owner in owners) == len(data)
    assert [(owner["owner"], owner["kind"]) for owner in owners] == [
        ("container", "header"),
        ("inputs.table", "value"),
        ("embedding/value", "tables"),
        ("blocks.0.up", "q"),
        ("blocks.1.up", "q"),
        ("matrix.up/q", "tables"),
        ("blocks.0.up", "scale"),
        ("blocks.1.up", "scale"),
        ("matrix.up/scale", "tables"),
        ("blocks.2.up", "value"),
        ("matrix.up/value", "tables"),
        ("blocks.0.gain", "value"),
        ("scalar/value", "tables"),
    ]


def test_a_tensor_of_twice_the_codes_owns_about_twice_the_bytes():
    leaves = [Leaf("a", "matrix.up", 0, (128, 64)), Leaf("b", "matrix.up", 1, (256, 64))]
    tensors = {leaf.name: torch.randn(leaf.shape, generator=torch.Generator().manual_seed(1)) for leaf in leaves}
    codes = quantise(tensors, leaves, assign_rules(leaves, (RowInt(),)), {})
    data, owners = write_container(codes, CODEC, DIGEST)
    taken = {(one["owner"], one["kind"]): one["bytes"] for one in owners}
    assert taken["b", "q"] == pytest.approx(2 * taken["a", "q"], rel=0.05)
    assert measure_container(codes, CODEC, DIGEST)[0] == pytest.approx(len(data), rel=0.02)


def test_the_same_codes_give_the_same_bytes(packed):
    assert write_container(small_codes(), CODEC, DIGEST)[0] == packed


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_a_flipped_byte_anywhere_is_a_problem(packed, mask):
    for place in range(len(packed)):
        wrong = bytearray(packed)
        wrong[place] ^= mask
        with pytest.raises(Problem, match=r"model file: (header|section \w)"):
            read_container(bytes(wrong), CODEC)


def test_a_missing_byte_anywhere_is_a_problem(packed):
    for place in range(len(packed)):
        for wrong in (packed[:place], packed[:place] + packed[place + 1 :]):
            with pytest.raises(Problem, match=r"model file: (header|section \w)"):
                read_container(wrong, CODEC)


@settings(max_examples=50, deadline=None)
@given(place=st.integers(0, 10**6), extra=st.binary(min_size=1, max_size=20))
def test_surplus_bytes_anywhere_are_a_problem(packed, place, extra):
    with pytest.raises(Problem, match=r"model file: .* surplus bytes"):
        read_container(packed + extra, CODEC)
    place %= len(packed)
    wrong = packed[:place] + extra + packed[place:]
    if wrong != packed + extra[: len(wrong) - len(packed)]:
        with pytest.raises(Problem, match="model file"):
            read_container(wrong, CODEC)


def test_damage_names_its_section(packed):
    with pytest.raises(Problem, match=r"section scalar/float16/value is damaged"):
        read_container(packed[:-1] + bytes([packed[-1] ^ 1]), CODEC)
    last = sum(one["bytes"] for one in write_container(small_codes(), CODEC, DIGEST)[1][-2:])
    place = len(packed) - last
    with pytest.raises(Problem, match=r"section scalar/float16/value is damaged or cut"):
        read_container(packed[:place], CODEC)


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=60))
def test_noise_behind_the_magic_is_a_problem(data):
    for wrong in (
        data,
        CONTAINER_MAGIC + data,
        forged(data),
        forged(json.dumps({"recipe": "", "tensors": [0]}).encode(), data),
    ):
        with pytest.raises(Problem):
            read_container(wrong, CODEC)


@pytest.mark.parametrize(
    "shape", [[2**20, 2**20], [30_000, 30_000], [-1], [0], [1.5], [100.0], [True], "ab", None, [10**30], [[1]]], ids=str
)
def test_a_header_that_lies_about_shapes_costs_no_memory(shape):
    data = forged(json.dumps({"recipe": "", "tensors": [["a", "int6", "matrix", shape]]}).encode())
    # A section whose frame is honest in form and too short for what the header states.
    data += block(CODEC.encode([torch.zeros(1, 100, dtype=torch.int8).numpy()]))
    tracemalloc.start()
    try:
        with pytest.raises(Problem, match="model file"):
            read_container(data, CODEC)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_more_content_than_any_model_holds_is_refused_before_it_is_read():
    table = [["a", "int8", "matrix", [2**15, 2**15]]]
    with pytest.raises(Problem, match="header states 1073807360 bytes of codes, more than"):
        read_container(forged(json.dumps({"recipe": "", "tensors": table}).encode()), CODEC)


def test_a_tensor_named_twice_is_refused():
    table = [["a", "float16", "scalar", [1]]] * 2
    with pytest.raises(Problem, match="header"):
        read_container(forged(json.dumps({"recipe": "", "tensors": table}).encode()), CODEC)


def test_a_header_that_inflates_without_end_is_refused():
    bomb = zlib.compress(b" " * (HEADER_LIMIT + 10))
    with pytest.raises(Problem, match="header is no table"):
        read_container(CONTAINER_MAGIC + block(bomb), CODEC)


def test_a_hundred_small_tensors_cost_little_more_than_their_weights():
    leaves = [Leaf(f"blocks.{i // 10}.name{i % 10}", "scalar", i // 10, (8,)) for i in range(100)]
    tensors = {leaf.name: torch.randn(leaf.shape) for leaf in leaves}
    codes = quantise(tensors, leaves, assign_rules(leaves, (KeepFloat16(),)), {})
    data, owners = write_container(codes, CODEC, DIGEST)
    assert owners[0]["bytes"] < 600
    assert len(data) < 600 + 100 * 8 * 2
