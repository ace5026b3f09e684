import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.model.roles import Leaf
from fairway.node import parse_node
from fairway.problem import Problem
from fairway.quantize.policy import assign_rules, dequantise, quantise, sound_weights
from fairway.quantize.schemes import LEAST_SCALE, KeepFloat16, RowInt, decode_coded, part_layout

PR162 = (
    KeepFloat16(largest=65_536),
    KeepFloat16(role="embedding"),
    KeepFloat16(role="matrix.key", layers=(-1,)),
    RowInt(role="matrix"),
    RowInt(role="table", bits=8, quantile=0.9999984),
)


def leaf_of(weight, role="matrix.up", name="blocks.0.up", layer=0):
    return Leaf(name, role, layer, tuple(weight.shape))


def coded(weight, scheme):
    return scheme.encode([weight], [leaf_of(weight)], None)[0]


def packed(tensors, leaves, policy):
    return quantise(sound_weights(tensors, leaves), leaves, assign_rules(leaves, policy), {})


def pr162_leaves():
    matrices = {
        "query": (512, 512),
        "key": (256, 512),
        "value": (256, 512),
        "output": (512, 512),
        "up": (1536, 512),
        "down": (512, 1536),
    }
    vectors = {"attention_scale": (512,), "mlp_scale": (512,), "residual_mix": (2, 512), "query_gain": (8,)}
    leaves = [
        Leaf("inputs.token.table", "embedding", -1, (1024, 512)),
        Leaf("inputs.bigram.table", "table", -1, (4096, 128)),
        Leaf("inputs.bigram.projection", "projection", -1, (512, 128)),
        Leaf("inputs.bigram.scale", "scalar", -1, ()),
        Leaf("stream.smear.gate", "scalar", -1, (512,)),
        Leaf("skip_weights", "scalar", -1, (4, 512)),
    ]
    for layer in range(9):
        leaves += [Leaf(f"blocks.{layer}.{name}", f"matrix.{name}", layer, shape) for name, shape in matrices.items()]
        leaves += [Leaf(f"blocks.{layer}.{name}", "scalar", layer, shape) for name, shape in vectors.items()]
    return leaves


def test_the_rules_of_162_sort_its_leaves_into_the_classes_of_its_artifact():
    leaves = pr162_leaves()
    rules = assign_rules(leaves, PR162)
    classes = [[leaf for leaf in leaves if rules[leaf.name] is rule] for rule in PR162]
    sizes = [sum(math.prod(leaf.shape) for leaf in chosen) for chosen in classes]
    assert [len(chosen) for chosen in classes] == [40, 1, 1, 53, 1]
    assert sizes[1] + sizes[2] == 655_360
    assert sizes[3] == 21_102_592
    assert sizes[4] == 524_288
    assert sum(sizes) == 22_368_841
    assert classes[2][0].name == "blocks.8.key"


def test_the_first_rule_that_matches_decides():
    weight = torch.ones(4, 4)
    leaf = leaf_of(weight)
    assert packed({leaf.name: weight}, [leaf], (RowInt(bits=4), KeepFloat16()))[leaf.name].scheme == "int4"
    assert packed({leaf.name: weight}, [leaf], (KeepFloat16(), RowInt(bits=4)))[leaf.name].scheme == "float16"


def test_the_last_layer_is_not_the_layer_of_leaves_that_belong_to_none():
    leaves = [
        Leaf("table", "embedding", -1, (4,)),
        Leaf("blocks.0.a", "scalar", 0, (4,)),
        Leaf("blocks.1.a", "scalar", 1, (4,)),
    ]
    rules = assign_rules(leaves, (RowInt(layers=(-1,)), KeepFloat16()))
    assert [type(rules[leaf.name]) for leaf in leaves] == [KeepFloat16, KeepFloat16, RowInt]


def test_a_role_takes_what_refines_it_and_nothing_that_only_begins_alike():
    leaves = [Leaf("a", "matrix.key", 0, (2,)), Leaf("b", "matrix.key_gain", 0, (2,)), Leaf("c", "matrix", 0, (2,))]
    rules = assign_rules(leaves, (RowInt(role="matrix.key"), KeepFloat16()))
    assert [type(rules[name]) for name in "abc"] == [RowInt, KeepFloat16, KeepFloat16]


@settings(max_examples=80, deadline=None)
@given(
    bits=st.integers(2, 8),
    rows=st.integers(1, 5),
    columns=st.integers(1, 40),
    exponents=st.lists(st.floats(-10, 6), min_size=5, max_size=5),
    seed=st.integers(0, 2**31),
)
def test_unclipped_weights_come_back_within_half_a_step(bits, rows, columns, exponents, seed):
    top = 2 ** (bits - 1) - 1
    noise = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    # Reaches from rows below the smallest scale to rows whose scale is near float16's end.
    weight = (noise * 10.0 ** torch.tensor(exponents[:rows])[:, None]).clamp(-60000, 60000)
    codes = coded(weight, RowInt(bits=bits))
    scale = codes.parts["scale"].float()[:, None]
    error = (decode_coded(codes).double() - weight.double()).abs()
    assert (error <= scale / 2 + top * 2.0**-25 + 1e-6 * weight.abs()).all()
    assert codes.parts["q"].abs().max() <= top
    assert torch.equal(codes.parts["q"], -coded(-weight, RowInt(bits=bits)).parts["q"])


def test_zero_rows_stay_zero_and_small_rows_keep_their_own_range():
    weight = torch.zeros(3, 128)
    weight[1] = torch.linspace(-1e-3, 1e-3, 128)
    weight[2] = torch.linspace(-3, 3, 128)
    codes = coded(weight, RowInt(bits=8))
    restored = decode_coded(codes)
    assert codes.parts["scale"][0].item() == LEAST_SCALE
    assert not restored[0].any()
    # With a floor of 1/127 the whole second row would be zero.
    assert (restored[1] - weight[1]).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 5)])
def test_a_vector_or_a_number_is_one_row_and_more_dimensions_have_a_row_each(shape):
    weight = torch.randn(shape)
    codes = coded(weight, RowInt(bits=8))
    assert {name: (part.dtype, tuple(part.shape)) for name, part in codes.parts.items()} == part_layout("int8", shape)
    assert len(codes.parts["scale"]) == (math.prod(shape[:-1]) if len(shape) > 1 else 1)
    assert torch.allclose(decode_coded(codes), weight, atol=0.03)


@pytest.mark.parametrize("quantile", [0.9999984, 0.9, 0.5])
def test_a_quantile_clips_rows_where_torch_says(quantile):
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(1))
    codes = coded(weight, RowInt(bits=8, quantile=quantile))
    clip = weight.abs().quantile(quantile, dim=1)
    assert torch.allclose(codes.parts["scale"].float(), clip / 127, rtol=1e-3)
    beyond = weight.abs() > 1.01 * clip[:, None]
    assert (codes.parts["q"][beyond].abs() == 127).all()
    assert beyond.any() or quantile > 0.99


def test_float16_keeps_float16_values_exactly_and_leaves_its_input_alone():
    weight = torch.randn(4, 4).half().float()
    before = weight.clone()
    restored = decode_coded(coded(weight, KeepFloat16()))
    assert torch.equal(restored, weight)
    restored += 1
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("weight", "scheme", "words"),
    [
        (torch.tensor([1.0, float("nan")]), RowInt(), "blocks.0.up holds 1 values that are not finite"),
        (torch.tensor([float("inf")]), KeepFloat16(), "blocks.0.up holds 1 values that are not finite"),
        (torch.tensor([7e4]), KeepFloat16(), "blocks.0.up holds 70000, beyond float16"),
        (torch.tensor([1e7]), RowInt(), "blocks.0.up holds .*, whose scale is beyond float16"),
        (torch.ones(2, 0), RowInt(), "blocks.0.up has shape"),
        (torch.ones(2), KeepFloat16(role="table"), "no rule quantises blocks.0.up"),
        (torch.ones(2), RowInt(layers=(3,)), "names layer 3, the model has 1"),
    ],
)
def test_weights_that_no_scheme_can_hold_are_named(weight, scheme, words):
    leaf = leaf_of(weight)
    with pytest.raises(Problem, match=words):
        packed({leaf.name: weight}, [leaf], (scheme,))


def test_weights_of_another_model_are_refused():
    leaf = Leaf("a", "scalar", -1, (2,))
    with pytest.raises(Problem, match="differ in b"):
        packed({"a": torch.ones(2), "b": torch.ones(2)}, [leaf], (KeepFloat16(),))
    with pytest.raises(Problem, match=r"a is .3,., the model's is .2,."):
        packed({"a": torch.ones(3)}, [leaf], (KeepFloat16(),))


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (RowInt, {"bits": 9}, "bits is 9"),
        (RowInt, {"bits": 1}, "bits is 1"),
        (RowInt, {"quantile": 0.0}, "quantile is 0"),
        (RowInt, {"quantile": 1.5}, "quantile is 1.5"),
        (RowInt, {"role": "matrixx"}, "'matrixx' is no role"),
        (KeepFloat16, {"largest": -1}, "largest is -1"),
    ],
)
def test_a_rule_that_means_nothing_is_refused_when_written(kind, fields, words):
    with pytest.raises(Problem, match=words):
        kind(**fields)


def test_rules_are_read_back_from_their_repr():
    assert parse_node(repr(PR162)) == PR162


def test_codes_come_in_the_order_of_the_leaves_and_decode_to_float32_of_their_shapes():
    leaves = [
        Leaf("table", "table", -1, (6, 4)),
        Leaf("gain", "scalar", -1, ()),
        Leaf("blocks.0.up", "matrix.up", 0, (3, 4)),
        Leaf("other", "table", -1, (6, 4)),
    ]
    tensors = {leaf.name: torch.randn(leaf.shape) for leaf in reversed(leaves)}
    codes = packed(tensors, leaves, (RowInt(role="matrix"), RowInt(role="table", bits=8), KeepFloat16()))
    assert list(codes) == [leaf.name for leaf in leaves]
    for name, weight in dequantise(codes).items():
        assert weight.dtype == torch.float32 and weight.shape == tensors[name].shape
        assert torch.allclose(weight, tensors[name], atol=0.05)
