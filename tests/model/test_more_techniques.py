"""Techniques of #864, #1205, #1514 and later against their formulas, worked out in float64.

B batch, T positions, D width, H query heads, G key-value heads, K head width, V vocabulary.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.table import BASE, last, random_values
from fairway.model.context import Carry, Initialiser, ModelContext, plain_linear
from fairway.model.head import AsymmetricSoftcap, TiedHead
from fairway.model.inputs import BigramHash, EngramLite
from fairway.model.mlp import LeakyReluSquared, ReluSquared
from fairway.model.plan import Order
from fairway.model.positions import Rotary
from fairway.model.residual import LNScale, MLPGate
from fairway.model.roles import leaf_views
from fairway.model.start import MimeticOutput
from fairway.model.stream import GatedSmear
from fairway.model.taps import ExclusiveSelfAttention, HeadGate, SparseGate
from fairway.model.values import ValueEmbedding, ValueResidual
from fairway.node import drop
from fairway.problem import Problem


def context(seed=0, **sizes):
    common = {"vocab": 64, "width": 8, "layers": 3, "heads": 4, "kv_heads": 2, "head_width": 2, "sequence": 16}
    common |= {"orders": (Order((), (0, 1, 2)),), "model": None}
    return ModelContext(**(common | sizes), init=Initialiser(seed))


def build(node, **sizes):
    return node.build(context(**sizes))


def stirred(node, **sizes):
    """The module with a random value in every leaf."""
    module = build(node, **sizes)
    for leaf, view in leaf_views(module):
        view.copy_(random_values(leaf))
    return module


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def leaves(module):
    return {leaf.name: view.double() for leaf, view in leaf_views(module)}


def roles(module):
    return {leaf.name: (leaf.role, leaf.layer, leaf.shape) for leaf, _ in leaf_views(module)}


class Recorder:
    """Takes the products with matrices, and notes their names."""

    def __init__(self):
        self.names = []

    def __call__(self, x, weight, name):
        self.names.append(name)
        return plain_linear(x, weight, name)


def carry_of(*rows, dtype=torch.float32):
    return Carry(torch.tensor(rows), dtype, Recorder())


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def near(got, exact, tolerance=1e-5):
    torch.testing.assert_close(got.detach().double(), exact.double(), rtol=tolerance, atol=tolerance)


# --- inputs


def literal_engram(ids, buckets):
    rows = []
    for at, i in enumerate(ids):
        p, o = ids[at - 1] if at >= 1 else 0, ids[at - 2] if at >= 2 else 0
        rows.append(
            [
                (1009 * p + i) % buckets,
                ((2719 * p + 314159) ^ (3137 * i)) % buckets + buckets,
                ((36313 * o) ^ (27191 * p) ^ (4903 * i)) % buckets + 2 * buckets,
                ((7919 * o) ^ (4391 * p) ^ (6151 * i)) % buckets + 3 * buckets,
            ]
        )
    return rows


def test_engram_rows_have_the_values_worked_out_by_hand():
    (hashed,) = build(EngramLite()).hash(torch.tensor([[1, 2, 3, 1023]]))
    assert hashed.tolist() == [
        # No history: 1; 314159 (0x4CB2F) xor 3137 (0xC41) = 0x4C76E = 313198 = 30 * 10240 + 5998; 4903; 6151.
        [1, 10240 + 5998, 20480 + 4903, 30720 + 6151],
        # 1009 + 2; 316878 (0x4D5CE) xor 6274 (0x1882) = 0x4CD4C = 314700 = 30 * 10240 + 7500; 27191 (0x6A37) xor
        # 9806 (0x264E) = 0x4C79 = 19577; 4391 (0x1127) xor 12302 (0x300E) = 0x2129 = 8489.
        [1011, 10240 + 7500, 20480 + 9337, 30720 + 8489],
        # 2018 + 3; 319597 (0x4E06D) xor 9411 (0x24C3) = 0x4C4AE = 312494; 36313 (0x8DD9) xor 54382 (0xD46E) xor
        # 14709 (0x3975) = 0x60C2 = 24770; 7919 (0x1EEF) xor 8782 (0x224E) xor 18453 (0x4815) = 0x74B4 = 29876.
        [2021, 10240 + 5294, 20480 + 4290, 30720 + 9396],
        # 3027 + 1023; 322316 (0x4EB0C) xor 3209151 (0x30F7BF) = 0x341CB3 = 3415219; 72626 (0x11BB2) xor 81573
        # (0x13EA5) xor 5015769 (0x4C88D9) = 0x4CADCE = 5025230; 15838 (0x3DDE) xor 13173 (0x3375) xor 6292473
        # (0x6003F9) = 0x600D52 = 6294866.
        [4050, 10240 + 5299, 20480 + 7630, 30720 + 7506],
    ]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 65_535), min_size=1, max_size=12), st.sampled_from([1, 17, 10_240]))
def test_engram_rows_are_the_formulas(ids, buckets):
    module = build(EngramLite(buckets=buckets, dim=1))
    hashed = module.hash(torch.tensor([ids]))
    assert hashed.dtype == torch.int64 and hashed.tolist() == [literal_engram(ids, buckets)]
    assert torch.equal(module.hash(torch.tensor([ids], dtype=torch.int32)), hashed)


def test_engram_rows_are_joined_projected_and_gated():
    node, ids = EngramLite(buckets=16, dim=3), [5, 9, 2]
    module, carry = stirred(node), carry_of(ids)
    w, got_BTD = leaves(module), module(carry)
    assert carry.linear.names == ["engram.proj"]
    gate_D = 1 / (1 + torch.exp(-w["engram.gate"]))
    for at, rows in enumerate(literal_engram(ids, 16)):
        near(got_BTD[0, at], gate_D * (w["engram.proj"] @ torch.cat([w["engram.table"][row] for row in rows])))


def test_engram_starts_as_a_gaussian_table_behind_a_zero_projection():
    module = build(EngramLite(buckets=500, dim=8, std=0.02))
    assert roles(module) == {
        "engram.table": ("table", -1, (2000, 8)),
        "engram.proj": ("projection", -1, (8, 32)),
        "engram.gate": ("scalar", -1, (8,)),
    }
    assert module.table_BE.std().item() == pytest.approx(0.02, rel=0.03)
    assert not module.proj_DE.any() and not module.gate_D.any()


def test_the_bigram_projection_starts_with_the_gain_asked_for():
    for gain, exact in ((None, 1 / math.sqrt(6)), (1.0, 1.0)):
        values = torch.linalg.svdvals(build(BigramHash(dim=4, gain=gain)).proj_DE.double())
        torch.testing.assert_close(values, torch.full_like(values, exact), rtol=1e-5, atol=0)


# --- stream


@pytest.mark.parametrize("stop", [False, True])
def test_the_gated_smear_adds_a_part_of_the_predecessor(stop):
    module = build(GatedSmear(inputs=5, stop_at_bos=stop, bos=1))
    assert roles(module) == {"smear.weight": ("scalar", -1, (5,)), "smear.lambda": ("scalar", -1, (1,))}
    ids, x_BTD = [[1, 5, 6, 1, 7], [4, 1, 1, 2, 3]], normal(2, 5, 8)
    assert torch.equal(module(x_BTD, carry_of(*ids)), x_BTD)
    with torch.no_grad():
        module.weight_I.copy_(normal(5, seed=2))
        module.strength.fill_(-0.7)
    got_BTD, w = module(x_BTD, carry_of(*ids)), module.weight_I.tolist()
    for b in range(2):
        for i in range(5):
            alone = i == 0 or (stop and ids[b][i] == 1)
            gate = sigmoid(sum(w[d] * x_BTD[b, i, d].item() for d in range(5)))
            before_D = torch.zeros(8) if alone else x_BTD[b, i - 1]
            near(got_BTD[b, i], x_BTD[b, i].double() - 0.7 * gate * before_D.double())


def test_the_gated_smear_has_thirteen_parameters():
    assert sum(parameter.numel() for parameter in build(GatedSmear(), width=512).parameters()) == 13


# --- positions


def test_the_rotary_base_of_864_and_1205_gives_the_published_frequencies():
    base = 10_000 * 2 ** (16 / 14)
    assert base == pytest.approx(22_081.79, abs=0.01)
    module = build(Rotary(base=base, dims=16), head_width=64)
    published = [1, 0.28641, 0.082034, 0.023496, 0.0067295, 0.0019274, 5.5204e-4, 1.5811e-4]
    angles_F = torch.atan2(module.sin_TF[1].double(), module.cos_TF[1].double())
    assert angles_F.tolist() == pytest.approx(published, rel=1e-4)


# --- values


def test_the_value_residual_mixes_in_the_first_values_of_the_pass():
    module, carry, v = build(ValueResidual()), carry_of([0]), [normal(2, 3, 2, 2, seed=i) for i in range(4)]
    assert roles(module)["blocks.2.attn.value_mix"] == ("scalar", 2, (2,))
    assert torch.equal(module.mix_L2, torch.full((3, 2), 0.5))
    with torch.no_grad():
        module.mix_L2.copy_(normal(3, 2))
    mix = module.mix_L2.detach()
    # Layer 0 comes back at step 2, and then it mixes with its own pair as any other.
    for step, layer in enumerate((0, 1, 0, 2)):
        carry.step = step
        got = module(v[step], layer, carry)
        near(got, mix[layer, 0] * v[0] + mix[layer, 1] * v[step] if step else v[0])


def test_the_value_embedding_adds_the_token_s_row_on_the_chosen_layers():
    node = ValueEmbedding(layers=(-3, 2, 0), dim=5)
    module, carry, v_BTGK = stirred(node), carry_of([3, 60, 3]), normal(1, 3, 2, 2)
    assert roles(module) == {
        "value_embedding.table": ("table", -1, (64, 5)),
        "value_embedding.proj": ("projection", -1, (4, 5)),
        "value_embedding.scale": ("scalar", -1, (1,)),
        "blocks.0.attn.value_embedding": ("scalar", 0, (1,)),
        "blocks.2.attn.value_embedding": ("scalar", 2, (1,)),
    }
    w = leaves(module)
    assert torch.equal(module(v_BTGK, 1, carry), v_BTGK) and carry.linear.names == []
    for layer in (0, 2, 0):
        got_BTGK, tau = module(v_BTGK, layer, carry), w[f"blocks.{layer}.attn.value_embedding"]
        for at, token in enumerate((3, 60, 3)):
            h_R = w["value_embedding.proj"] @ w["value_embedding.table"][token] * w["value_embedding.scale"]
            for group in range(2):
                near(got_BTGK[0, at, group], v_BTGK[0, at, group].double() + tau * h_R[2 * group : 2 * group + 2])
    assert carry.linear.names == ["value_embedding.proj"], "the product is taken once a pass"


def test_the_value_embedding_starts_small_but_not_at_zero():
    module = build(ValueEmbedding(), vocab=500, layers=11, kv_heads=4, head_width=64)
    assert [leaf.layer for leaf, _ in leaf_views(module)] == [-1, -1, -1, 8, 9, 10]
    assert module.table_VE.std().item() == pytest.approx(0.01, rel=0.02)
    values = torch.linalg.svdvals(module.proj_RE.double())
    torch.testing.assert_close(values, torch.ones(128, dtype=torch.float64), rtol=1e-5, atol=0)
    assert module.scale.item() == pytest.approx(0.1) and torch.equal(module.tau_N1, torch.ones(3, 1))


def test_layers_that_the_model_does_not_have_are_named():
    for node in (ValueEmbedding(layers=(3,)), ExclusiveSelfAttention(layers=(-4,))):
        with pytest.raises(Problem, match=rf"{type(node).__name__}\.layers names layer {node.layers[0]}, the model has 3"):
            build(node)


# --- taps


def test_exclusive_self_attention_takes_out_the_direction_of_the_position_s_own_value():
    y_BTHK, v_BTGK = normal(2, 3, 4, 2), normal(2, 3, 2, 2, seed=1)
    v_BTGK[0, 1, 1] = 0  # a zero value has no direction
    got_BTHK = build(ExclusiveSelfAttention())(y_BTHK, None, v_BTGK, 0, None)
    for b, t, h in ((b, t, h) for b in range(2) for t in range(3) for h in range(4)):
        y, v = y_BTHK[b, t, h].double(), v_BTGK[b, t, h // 2].double()
        unit = v / max(math.sqrt(v @ v), 1e-12)
        near(got_BTHK[b, t, h], y - (y @ unit) * unit)
    assert torch.equal(got_BTHK[0, 1, 2:], y_BTHK[0, 1, 2:])


def test_exclusive_self_attention_acts_on_the_chosen_layers_and_norms_in_float32():
    module = build(ExclusiveSelfAttention(layers=(-1,)))
    # The square of 300 is beyond float16, and 1e-12 is zero there: a zero value would be divided by zero.
    y_BTHK, v_BTGK = torch.ones(1, 1, 4, 2).half(), torch.tensor([[300.0, 0.0], [0.0, 0.0]]).half().view(1, 1, 2, 2)
    for layer in (0, 1):
        assert module(y_BTHK, None, v_BTGK, layer, None) is y_BTHK
    assert module(y_BTHK, None, v_BTGK, 2, None)[0, 0].tolist() == [[0, 1], [0, 1], [1, 1], [1, 1]]


def test_head_gates_read_the_whole_normed_input():
    module, carry, y_BTHK, n_BTD = build(HeadGate(bias=4.0)), carry_of([0]), normal(1, 3, 4, 2), normal(1, 3, 8, seed=1)
    near(module(y_BTHK, n_BTD, None, 1, carry), y_BTHK * sigmoid(4.0))
    assert roles(module)["blocks.1.attn.gate"] == ("scalar", 1, (4, 8))
    assert roles(module)["blocks.1.attn.gate_bias"] == ("scalar", 1, (4,))
    module = stirred(HeadGate())
    w, got_BTHK = leaves(module), module(y_BTHK, n_BTD, None, 1, carry)
    assert carry.linear.names == ["blocks.1.attn.gate"] * 2
    for t in range(3):
        z_H = w["blocks.1.attn.gate"] @ n_BTD[0, t].double() + w["blocks.1.attn.gate_bias"]
        for h in range(4):
            near(got_BTHK[0, t, h], y_BTHK[0, t, h] * sigmoid(z_H[h]))


def test_sparse_gates_read_the_first_channels_only():
    y_BTHK, n_BTD, carry = normal(1, 3, 4, 2), normal(1, 3, 8, seed=1), carry_of([0])
    near(build(SparseGate(inputs=3))(y_BTHK, n_BTD, None, 1, carry), y_BTHK / 2)
    module = stirred(SparseGate(inputs=3, scale=0.25))
    assert roles(module)["blocks.2.attn.sparse_gate"] == ("scalar", 2, (4, 3))
    w, got_BTHK = leaves(module)["blocks.2.attn.sparse_gate"], module(y_BTHK, n_BTD, None, 2, carry)
    assert carry.linear.names == ["blocks.1.attn.sparse_gate", "blocks.2.attn.sparse_gate"]
    for t in range(3):
        for h in range(4):
            z = sum(w[h, d].item() * n_BTD[0, t, d].item() for d in range(3))
            near(got_BTHK[0, t, h], y_BTHK[0, t, h] * sigmoid(0.25 * z))


@pytest.mark.parametrize("kind", [SparseGate, GatedSmear, MLPGate])
def test_a_gate_that_reads_more_than_there_is_is_refused(kind):
    for inputs in (0, 9):
        with pytest.raises(Problem, match=rf"{kind.__name__}\.inputs is {inputs}; take 1 to the model's width 8"):
            build(kind(inputs=inputs))
    build(kind(inputs=8))


# --- blocks


@pytest.mark.parametrize("slopes", [(0.5,), (-0.014, 0.3, 0.0), (0.014, 0.3, 0.0)])
def test_the_leaky_mlp_squares_both_sides(slopes):
    module, n_D = stirred(LeakyReluSquared(2.5, slopes)), normal(8)
    for layer in range(3):
        slope = slopes[layer] if len(slopes) > 1 else slopes[0]
        up_MD, down_DM = (leaves(module)[f"blocks.{layer}.mlp.{kind}"] for kind in ("up", "down"))
        z_M = (up_MD @ n_D.double()).tolist()
        assert min(z_M) < 0 < max(z_M)
        hidden_M = torch.tensor([z * z if z > 0 else slope * slope * z * z for z in z_M], dtype=torch.float64)
        near(module(n_D, module.matrices(carry_of([0])), layer, carry_of([0])), down_DM @ hidden_M)


def test_the_leaky_mlp_without_a_leak_is_the_plain_one_to_the_bit():
    leaky, plain, n_BTD = stirred(LeakyReluSquared(2.0, (0.0,))), stirred(ReluSquared(2.0)), normal(2, 3, 8)
    assert roles(leaky) == roles(plain)
    one, two = (module(n_BTD, module.matrices(carry_of([0])), 1, carry_of([0])) for module in (leaky, plain))
    assert torch.equal(one, two)
    assert torch.equal(build(LeakyReluSquared()).up_LMD, build(ReluSquared()).up_LMD)


@pytest.mark.parametrize("slopes", [(), (0.5, 0.5)])
def test_slopes_are_one_or_one_a_layer(slopes):
    with pytest.raises(Problem, match=rf"LeakyReluSquared\.slopes has {len(slopes)} values: give 1, or .* 3 layers"):
        build(LeakyReluSquared(slopes=slopes))


def test_norms_are_scaled_down_with_depth():
    module, n_BTD = build(LNScale()), normal(1, 2, 8)
    for layer in range(3):
        near(module.normed(n_BTD, layer, None), n_BTD.double() / math.sqrt(layer + 1))
        assert module.normed(n_BTD.bfloat16(), layer, None).dtype == torch.bfloat16
    assert list(module.parameters()) == []


def test_the_mlp_gate_reads_what_the_mlp_read():
    d_BTD, n_BTD = normal(1, 3, 8), normal(1, 3, 8, seed=1)
    near(build(MLPGate(inputs=3)).fed(d_BTD, n_BTD, 1, None), d_BTD * sigmoid(5.0))
    module = stirred(MLPGate(inputs=3))
    assert roles(module)["blocks.1.mlp.gate"] == ("scalar", 1, (3,))
    assert roles(module)["blocks.1.mlp.gate_bias"] == ("scalar", 1, (1,))
    w, got_BTD = leaves(module), module.fed(d_BTD, n_BTD, 1, None)
    for t in range(3):
        z = (w["blocks.1.mlp.gate"] @ n_BTD[0, t, :3].double() + w["blocks.1.mlp.gate_bias"]).item()
        near(got_BTD[0, t], d_BTD[0, t] * sigmoid(z))
    assert torch.equal(module.attended(d_BTD, n_BTD, 1, None), d_BTD)


# --- head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_asymmetric_softcap_has_a_cap_for_each_sign(dtype):
    module, z_BTV = build(AsymmetricSoftcap(cap=30.0)), (normal(2, 3, 8) * 40).to(dtype)
    assert torch.equal(module.caps_2, torch.full((2,), 30.0))
    assert roles(module) == {"softcap.caps": ("scalar", -1, (2,))}
    with torch.no_grad():
        module.caps_2.copy_(torch.tensor([20.0, 7.0]))
    got = module(z_BTV, None)
    assert got.dtype == torch.float32
    exact = [20 * math.tanh(z / 20) if z > 0 else 7 * math.tanh(z / 7) for z in z_BTV.double().flatten().tolist()]
    near(got.flatten(), torch.tensor(exact, dtype=torch.float64))


def test_a_cap_that_is_not_positive_is_refused():
    with pytest.raises(Problem, match=r"AsymmetricSoftcap\.cap is 0"):
        AsymmetricSoftcap(cap=0)


def test_the_tied_head_asks_for_the_table_that_it_takes():
    with pytest.raises(Problem, match=r"TiedHead needs a TokenEmbedding in model\.inputs"):
        drop(last("inputs", BASE, BigramHash()), type(BASE.inputs[0])).build(0)
    build(TiedHead())


# --- start


def cosine(one, two):
    return ((one * two).sum() / one.norm() / two.norm()).item()


def test_mimetic_outputs_undo_the_values_of_their_head():
    layers, heads, groups, size, width = 2, 8, 4, 8, 64
    draw = Initialiser(3).orthogonal
    views = {f"blocks.{i}.attn.value": draw(f"value {i}", groups * size, width) for i in range(layers)}
    views |= {f"blocks.{i}.attn.output": torch.full((width, width), 9.0) for i in range(layers)}
    values = {name: view.clone() for name, view in views.items() if name.endswith("value")}
    node, sizes = MimeticOutput(strength=0.05), {"layers": layers, "heads": heads, "kv_heads": groups, "width": width}
    assert build(node, head_width=size, **sizes)(views) is None
    for i in range(layers):
        assert torch.equal(views[f"blocks.{i}.attn.value"], values[f"blocks.{i}.attn.value"])
        v, o = views[f"blocks.{i}.attn.value"].double(), views[f"blocks.{i}.attn.output"].double()
        meant, rows = torch.zeros(width, width).double(), torch.zeros(width, width).double()
        for h in range(heads):
            v_h = v[size * (h // 2) : size * (h // 2 + 1)]
            near(o[:, size * h : size * (h + 1)] @ v_h, -0.05 * v_h.T @ v_h)
            meant += o[:, size * h : size * (h + 1)] @ v_h
            # What the public script has: the blocks of V as O's rows.
            rows[size * h : size * (h + 1)] = -0.05 * v_h
        heads_vd = torch.cat([v[size * (h // 2) : size * (h // 2 + 1)] for h in range(heads)])
        minus_one = -torch.eye(width).double()
        assert cosine(meant, minus_one) == pytest.approx(math.sqrt(0.5), abs=1e-5)
        assert abs(cosine(rows @ heads_vd, minus_one)) < 0.1


def test_mimetic_outputs_are_the_model_s_initial_values_and_nothing_else_is_changed():
    plain, started = BASE.build(5), last("start", BASE, MimeticOutput(strength=0.5)).build(5)
    changed = {name for name, view in leaves(plain).items() if not torch.equal(view, leaves(started)[name])}
    assert changed == {f"blocks.{i}.attn.output" for i in range(4)}
    w = leaves(started)
    near(w["blocks.2.attn.output"][:, 12:16], -0.5 * w["blocks.2.attn.value"][4:8].T)
