"""Every technique of #162 against its formula. B batch, T positions, D width, H heads, K head width, F frequencies."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.model.context import Carry, Initialiser, ModelContext
from fairway.model.head import Softcap
from fairway.model.inputs import BigramHash, TokenEmbedding
from fairway.model.mlp import ReluSquared
from fairway.model.plan import AddSkip, Order, Straight, UNet
from fairway.model.positions import QKGain, QKNorm, Rotary
from fairway.model.residual import LayerScale, ResidualMix
from fairway.model.roles import leaf_views
from fairway.model.stream import InputNorm, SmearGate
from fairway.problem import Problem


def context(seed=0, **sizes):
    common = {"vocab": 64, "width": 8, "layers": 3, "heads": 4, "kv_heads": 2, "head_width": 2, "sequence": 16}
    common |= {"orders": (Order((0,), (1, 2)),), "model": None}
    return ModelContext(**(common | sizes), init=Initialiser(seed))


def build(node, **sizes):
    return node.build(context(**sizes))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def carry_of(*rows, dtype=torch.float32):
    return Carry(torch.tensor(rows), dtype)


# --- inputs


def literal_hash(ids, buckets=4096):
    return [buckets - 1] + [((36313 * ids[i]) ^ (27191 * ids[i - 1])) % (buckets - 1) for i in range(1, len(ids))]


def test_the_bigram_hash_has_the_values_worked_out_by_hand():
    hashed = build(BigramHash(dim=2)).hash(torch.tensor([[1, 2, 3, 1023], [0, 0, 1, 0]]))
    # Position 0 takes the last bucket. (2 after 1): 36313 * 2 = 0x11BB2, xor 27191 = 0x6A37: 94597 = 23 * 4095 + 412.
    # (3 after 2): 0x1A98B xor 0xD46E = 0x17DE5 = 97765. (1023 after 3): 0x236D627 xor 0x13EA5 = 0x237E882 = 37218434.
    assert hashed.tolist() == [[4095, 412, 3580, 3074], [4095, 0, 3553, 2621]]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 1023), min_size=1, max_size=20), st.sampled_from([2, 17, 1024, 4096, 10240]))
def test_the_bigram_hash_is_the_formula(ids, buckets):
    module = build(BigramHash(buckets=buckets, dim=1))
    hashed = module.hash(torch.tensor([ids]))
    assert hashed.tolist() == [literal_hash(ids, buckets)]
    assert torch.equal(module.hash(torch.tensor([ids], dtype=torch.int32)).long(), hashed)


def test_bigram_rows_are_projected_and_scaled():
    module = build(BigramHash(buckets=32, dim=4))
    with torch.no_grad():
        module.table_BE.copy_(normal(32, 4))
    out_BTD = module(carry_of([5, 9, 2]))
    for position, bucket in enumerate(literal_hash([5, 9, 2], 32)):
        exact = 0.05 * module.proj_DE.double() @ module.table_BE[bucket].double()
        torch.testing.assert_close(out_BTD[0, position].double(), exact, rtol=1e-5, atol=1e-7)


def test_the_embedding_looks_up_rows_in_the_activations_dtype_and_lends_the_table():
    module = build(TokenEmbedding())
    carry = carry_of([3, 3, 63], dtype=torch.bfloat16)
    x_BTD = module(carry)
    assert x_BTD.dtype == torch.bfloat16 and carry.table_VD is module.table_VD
    assert torch.equal(x_BTD[0], module.table_VD[[3, 3, 63]].bfloat16())


# --- stream


def test_the_input_norm_makes_rows_of_root_mean_square_one():
    x_BTD = build(InputNorm())(normal(2, 3, 8) * 7, None)
    torch.testing.assert_close(x_BTD.square().mean(-1), torch.ones(2, 3), rtol=1e-5, atol=0)


@pytest.mark.parametrize("stop", [False, True])
def test_the_smear_gate_is_the_formula(stop):
    module = build(SmearGate(stop_at_bos=stop, bos=1))
    assert torch.equal(module.gate_D, torch.zeros(8))
    with torch.no_grad():
        module.gate_D.copy_(normal(8, seed=2))
    ids, x_BTD = [[1, 5, 6, 1, 7], [4, 1, 1, 2, 3]], normal(2, 5, 8)
    got_BTD = module(x_BTD, carry_of(*ids)).detach().double()
    gate = 1 / (1 + torch.exp(-module.gate_D.detach().double()))
    for b in range(2):
        for i in range(5):
            alone = i == 0 or (stop and ids[b][i] == 1)
            before = torch.zeros(8, dtype=torch.float64) if alone else x_BTD[b, i - 1].double()
            exact = (1 - gate) * x_BTD[b, i].double() + gate * before
            torch.testing.assert_close(got_BTD[b, i], exact, rtol=1e-5, atol=1e-6)


# --- positions


@pytest.mark.parametrize("width, dims, base", [(64, None, 10_000.0), (64, 16, 10_000.0), (8, 8, 500.0)])
def test_rotary_is_the_float64_rotation_at_all_positions(width, dims, base):
    module = build(Rotary(base=base, dims=dims), head_width=width, sequence=2048)
    x_BTHK = normal(1, 2048, 1, width)
    got_TK = module.rotate(x_BTHK)[0, :, 0].double()
    x_TK, dims = x_BTHK[0, :, 0].double(), dims or width
    for position in (0, 1, 2, 255, 257, 1023, 2046, 2047):
        for i in range(dims // 2):
            angle = position * base ** (-2 * i / dims)
            one, two = x_TK[position, i].item(), x_TK[position, i + dims // 2].item()
            assert got_TK[position, i].item() == pytest.approx(one * math.cos(angle) + two * math.sin(angle), abs=1e-6)
            assert got_TK[position, i + dims // 2].item() == pytest.approx(
                two * math.cos(angle) - one * math.sin(angle), abs=1e-6
            )
    assert torch.equal(got_TK[:, dims:], x_TK[:, dims:])


def test_rotary_keeps_all_2048_positions_apart_also_in_bfloat16():
    module = build(Rotary(), head_width=64, sequence=2048)
    assert module.cos_TF.dtype == torch.float32
    assert len(torch.cat((module.cos_TF, module.sin_TF), 1).unique(dim=0)) == 2048
    ones_BTHK = torch.ones(1, 2048, 1, 64, dtype=torch.bfloat16)
    assert module.rotate(ones_BTHK).dtype == torch.bfloat16
    # A cast model must not take the angles with it (the public buffers became bfloat16: 641 positions apart).
    torch.testing.assert_close(module.cos_TF[2047, 0].item(), math.cos(2047), rtol=0, atol=1e-6)
    assert list(module.state_dict()) == []


def test_rotary_scores_depend_on_the_distance_only():
    module = build(Rotary(), head_width=16, sequence=64)
    q_TK, k_TK = normal(1, 1, 1, 16).expand(1, 64, 1, 16), normal(1, 1, 1, 16, seed=1).expand(1, 64, 1, 16)
    q_BTHK, k_BTHK = module(q_TK, k_TK, 0, None)
    scores_TT = q_BTHK[0, :, 0] @ k_BTHK[0, :, 0].T
    for distance in (1, 5, 40):
        torch.testing.assert_close(
            scores_TT.diagonal(-distance), scores_TT[distance, 0].expand(64 - distance), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("dims", [0, -2, 3, 18])
def test_rotary_refuses_dims_that_do_not_fit(dims):
    with pytest.raises(Problem, match=rf"Rotary\.dims is {dims}; .*16"):
        build(Rotary(dims=dims), head_width=16)


def test_the_qk_gain_multiplies_each_query_head_of_its_layer():
    module = build(QKGain(init=1.5))
    assert torch.equal(module.gain_LH, torch.full((3, 4), 1.5))
    with torch.no_grad():
        module.gain_LH.copy_(normal(3, 4))
    q_BTHK, k_BTGK = normal(2, 5, 4, 2), normal(2, 5, 2, 2, seed=1)
    q, k = module(q_BTHK, k_BTGK, 2, None)
    assert k is k_BTGK
    for head in range(4):
        assert torch.equal(q[:, :, head], q_BTHK[:, :, head] * module.gain_LH[2, head])


def test_qk_norm_norms_each_head_of_queries_and_keys():
    for normed in build(QKNorm())(normal(2, 5, 4, 8), normal(2, 5, 2, 8), 0, None):
        torch.testing.assert_close(normed.square().mean(-1), torch.ones(normed.shape[:-1]), rtol=1e-4, atol=0)


# --- blocks


def test_the_residual_mix_blends_in_the_first_stream():
    module, carry = build(ResidualMix()), Carry(None, torch.float32)
    carry.x0_BTD, x_BTD = normal(2, 3, 8), normal(2, 3, 8, seed=1)
    assert torch.equal(module.enter(x_BTD, 1, carry), x_BTD)
    with torch.no_grad():
        module.mix_L2D.copy_(normal(3, 2, 8))
    exact = module.mix_L2D[1, 0] * x_BTD + module.mix_L2D[1, 1] * carry.x0_BTD
    torch.testing.assert_close(module.enter(x_BTD, 1, carry), exact, rtol=0, atol=0)
    assert [view.shape for _, view in leaf_views(module)] == [(2, 8)] * 3


def test_layer_scales_act_on_each_delta_of_their_layer():
    module, d_BTD = build(LayerScale()), normal(2, 3, 8)
    with torch.no_grad():
        module.attn_LD.copy_(normal(3, 8))
        module.mlp_LD.copy_(normal(3, 8, seed=1))
    for method in (module.normed, module.enter):
        assert torch.equal(method(d_BTD, 0, None), d_BTD)
    assert all(map(torch.equal, module.gains(), (normal(3, 8), normal(3, 8, seed=1))))


def test_the_mlp_squares_what_is_positive():
    module = build(ReluSquared(expansion=2.5))
    assert module.up_LMD.shape == (3, 20, 8)
    with torch.no_grad():
        module.down_LDM.copy_(normal(3, 8, 20))
    n_D = normal(8)
    hidden = [max(0.0, (row @ n_D).item()) ** 2 for row in module.up_LMD[1].detach()]
    exact = module.down_LDM[1].detach() @ torch.tensor(hidden)
    got = module(n_D, module.matrices(carry_of([0])), 1, carry_of([0]))
    torch.testing.assert_close(got.detach(), exact, rtol=1e-5, atol=1e-5)


def test_a_skip_adds_the_step_s_weights_times_the_skip():
    module = build(AddSkip(), orders=(Order((0,), (1,)), Order(range(4), range(5))))
    assert torch.equal(module.weight_SD, torch.ones(4, 8))
    with torch.no_grad():
        module.weight_SD.copy_(normal(4, 8))
    skip_BTD, x_BTD = normal(1, 2, 8), normal(1, 2, 8, seed=1)
    got_BTD = module(skip_BTD, x_BTD, step=3, carry=None)
    torch.testing.assert_close(got_BTD, x_BTD + module.weight_SD[3] * skip_BTD, rtol=0, atol=1e-7)


@pytest.mark.parametrize("layers, encoder, decoder, skips", [(9, 4, 5, 4), (8, 4, 4, 4), (2, 1, 1, 1)])
def test_the_u_net_splits_the_layers_in_the_middle(layers, encoder, decoder, skips):
    (order,) = UNet(AddSkip()).orders(layers)
    assert order == Order(tuple(range(encoder)), tuple(range(encoder, layers))) and len(order.decoder) == decoder
    assert order.skips() == skips


def test_a_u_net_of_one_layer_is_refused():
    with pytest.raises(Problem, match=r"model\.layers is 1"):
        UNet(AddSkip()).orders(1)


def test_the_straight_plan_runs_every_layer_once():
    assert Straight().orders(3) == (Order((), (0, 1, 2)),) and Straight().orders(3)[0].skips() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_softcap_is_taken_in_float32(dtype):
    z_BTV = (normal(2, 3, 8) * 40).to(dtype)
    got = build(Softcap(cap=30.0))(z_BTV, None)
    assert got.dtype == torch.float32 and got.abs().max() < 30
    torch.testing.assert_close(got.double(), 30 * torch.tanh(z_BTV.double() / 30), rtol=1e-6, atol=1e-6)


# --- initial values


@pytest.mark.parametrize("shape, gain", [((6, 4), 1.0), ((4, 6), 1.0), ((5, 5), 0.3)])
def test_orthogonal_matrices_have_all_singular_values_at_the_gain(shape, gain):
    values = torch.linalg.svdvals(Initialiser(1).orthogonal("w", *shape, gain=gain).double())
    torch.testing.assert_close(values, torch.full_like(values, gain), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "draw", [lambda init, name: init.normal(name, 6, 4, std=2.0), lambda init, name: init.orthogonal(name, 6, 4)]
)
def test_a_tensor_is_decided_by_the_seed_and_its_name_whatever_was_drawn_before(draw):
    late, one = Initialiser(5), draw(Initialiser(5), "a")
    other = draw(late, "b")
    assert torch.equal(draw(late, "a"), one) and torch.equal(draw(late, "a"), one)
    for stranger in (other, draw(Initialiser(6), "a"), draw(Initialiser(0), "a")):
        assert not torch.isclose(stranger, one).all(-1).any()
    assert one.any() and not draw(Initialiser(None), "a").any()


def test_normal_values_have_the_deviation_asked_for():
    values = Initialiser(5).normal("a", 200, 200, std=2.0)
    assert values.dtype == torch.float32 and values.shape == (200, 200)
    assert values.std().item() == pytest.approx(2.0, rel=0.02) and abs(values.mean().item()) < 0.05


def test_drawing_leaves_torch_s_own_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Initialiser(5).orthogonal("a", 4, 4)
    Initialiser(5).normal("b", 4, std=1.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_bigram_starts_as_zero_table_and_scaled_orthogonal_projection():
    module = build(BigramHash(dim=16), width=32, layers=9)
    assert not module.table_BE.any() and module.scale.item() == pytest.approx(0.05)
    values = torch.linalg.svdvals(module.proj_DE.double())
    torch.testing.assert_close(values, torch.full_like(values, 1 / math.sqrt(18)), rtol=1e-5, atol=0)
