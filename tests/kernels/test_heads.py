import pytest
import torch

from fairway.kernels.heads import HeadTransform, ShapedHeads, reference_shape_heads, shape_heads
from fairway.kernels.norm import rms_norm
from fairway.model.positions import PositionPart, QKGainModule, QKNormModule, RotaryModule, fused_transform
from optim.ahead import compile_ahead

# Against float64 one rounding to bfloat16: half a unit in the last place is 2^-8, but Triton's interpreter cuts off, 2^-7.
# The rest is float32 sums that cancel.
TOLERANCE = {torch.bfloat16: {"rtol": 2**-7, "atol": 5e-5}, torch.float32: {"rtol": 1e-5, "atol": 5e-5}}


@pytest.fixture(autouse=True)
def interpreted(request):
    """Launches on CPU tensors need the interpreter, which conftest.py turns off for a card."""
    if torch.cuda.is_available() and "card" not in request.node.name:
        pytest.skip("runs in the interpreter, without --gpu")


@pytest.fixture
def poisoned():
    """What torch.empty gives is NaN until it is written."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.zeros(3).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def transform_of(length, heads, dims=16, norm=True, gain=True, seed=1, device="cpu"):
    """Tables that are no rotation's, so that nothing may rely on cos^2 + sin^2 = 1."""
    generator = torch.Generator().manual_seed(seed)
    cos_TF, sin_TF = torch.randn(2, length + 3, dims // 2, generator=generator).to(device)
    gain_H = torch.randn(heads, generator=generator).to(device) if gain else None
    return HeadTransform(norm, cos_TF if dims else None, sin_TF if dims else None, gain_H)


def operands(batch, length, heads, kv_heads, width, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    counts = (heads, kv_heads, kv_heads)
    qkv_BTN = 3 * torch.randn(batch, length, sum(counts) * width, generator=generator)
    grads = [torch.randn(batch, length, count, width, generator=generator) for count in counts]
    return qkv_BTN.to(dtype), [grad.to(dtype) for grad in grads]


def fast_heads(qkv_BTN, heads, kv_heads, transform):
    tables = transform.cos_TF, transform.sin_TF
    return ShapedHeads.apply(qkv_BTN, transform.gain_H, *tables, heads, kv_heads, transform.norm)


def results(function, qkv_BTN, grads, transform):
    """q, k, v, d_qkv and, where there is a gain, its gradient."""
    heads, kv_heads = grads[0].shape[2], grads[1].shape[2]
    qkv_BTN = qkv_BTN.detach().requires_grad_()
    gain_H = transform.gain_H if transform.gain_H is None else transform.gain_H.detach().requires_grad_()
    transform = HeadTransform(transform.norm, transform.cos_TF, transform.sin_TF, gain_H)
    out = function(qkv_BTN, heads, kv_heads, transform)
    inputs = [qkv_BTN] if gain_H is None else [qkv_BTN, gain_H]
    return [part.detach() for part in out] + list(torch.autograd.grad(out, inputs, grads))


def check(qkv_BTN, grads, transform, function=fast_heads, tolerance=TOLERANCE):
    fast = results(function, qkv_BTN, grads, transform)
    wide = HeadTransform(*(part.double() if torch.is_tensor(part) else part for part in fields(transform)))
    exact = results(reference_shape_heads, qkv_BTN.double(), [grad.double() for grad in grads], wide)
    assert all(part.dtype == qkv_BTN.dtype for part in fast[:4]) and all(fast[part].is_contiguous() for part in (0, 1, 3))
    for one, other in zip(fast[:4], exact[:4], strict=True):
        torch.testing.assert_close(one.double(), other, **tolerance[qkv_BTN.dtype])
    for one, other in zip(fast[4:], exact[4:], strict=True):  # summed over all positions in float32
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4 * qkv_BTN.shape[1] ** 0.5)


def fields(transform):
    return transform.norm, transform.cos_TF, transform.sin_TF, transform.gain_H


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "shape, dims",
    [
        ((2, 37, 8, 4, 64), 16),
        ((1, 1, 1, 1, 16), 2),
        ((2, 33, 3, 1, 32), 32),
        ((1, 9, 6, 2, 128), 70),
        ((2, 65, 2, 2, 16), 6),
        ((2, 0, 2, 1, 16), 8),
    ],
)
def test_one_kernel_each_way_is_the_reference(poisoned, shape, dims, dtype):
    check(*operands(*shape, dtype), transform_of(shape[1], shape[2], dims))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dims", [0, 8])
@pytest.mark.parametrize("gain", [False, True])
def test_each_part_may_be_absent(poisoned, norm, dims, gain):
    check(*operands(2, 35, 4, 2, 16, torch.bfloat16), transform_of(35, 4, dims, norm, gain))


def test_values_stay_as_they_lie_and_gains_of_zero_have_gradients(poisoned):
    qkv_BTN, grads = operands(2, 5, 4, 2, 16, torch.bfloat16)
    transform = transform_of(5, 4, 8)
    transform.gain_H[:2] = 0
    _, _, v_BTGK, d_qkv_BTN, d_gain_H = results(fast_heads, qkv_BTN, grads, transform)
    assert fast_heads(qkv_BTN, 4, 2, transform)[2].data_ptr() == qkv_BTN[..., -32:].data_ptr()
    assert v_BTGK.flatten(2).equal(qkv_BTN[..., -32:]) and d_qkv_BTN[..., -32:].equal(grads[2].flatten(2))
    assert d_qkv_BTN[..., :32].count_nonzero() == 0 and d_gain_H.count_nonzero() == 4
    check(qkv_BTN, grads, transform)


def test_small_and_large_heads_are_normed_alike(poisoned):
    qkv_BTN, grads = operands(1, 6, 2, 1, 16, torch.float32)
    qkv_BTN *= torch.tensor([0, 1e-9, 1e-4, 1e-2, 1e2, 1e6])[None, :, None]
    transform = transform_of(6, 2, 4)
    fast = results(fast_heads, qkv_BTN, grads, transform)
    exact = results(reference_shape_heads, qkv_BTN.double(), [grad.double() for grad in grads], transform)
    for one, other in zip(fast[:4], exact[:4], strict=True):
        for place in range(6):
            scale = float(other[:, place].abs().max())
            torch.testing.assert_close(one[:, place].double(), other[:, place], rtol=1e-4, atol=1e-5 * scale)


def test_gradients_may_have_any_strides(poisoned):
    qkv_BTN, (dq, dk, dv) = operands(2, 19, 4, 2, 32, torch.bfloat16)
    transform = transform_of(19, 4)
    turned = [grad.transpose(1, 2).contiguous().transpose(1, 2) for grad in (dq, dk, dv)]
    check(qkv_BTN, turned, transform)
    check(qkv_BTN, [dq, torch.cat((dk, dv), dim=2)[:, :, :2], turned[2]], transform)
    check(qkv_BTN, [dq[:, :1].expand_as(dq), torch.stack((dk, dk), dim=-1)[..., 0], dv[:, :, :1].expand_as(dv)], transform)
    apart = torch.stack((qkv_BTN, qkv_BTN), dim=-1)[..., 0]
    check(apart, [dq, dk, dv], HeadTransform(True, transform.cos_TF.mT.contiguous().mT, transform.sin_TF, transform.gain_H))


def test_rows_longer_than_the_tables_are_refused():
    qkv_BTN, _ = operands(1, 9, 2, 1, 16, torch.float32)
    with pytest.raises(ValueError, match="rows of 9 positions, tables of 8"):
        fast_heads(qkv_BTN, 2, 1, transform_of(5, 2, 4))


def test_a_processor_takes_the_reference():
    qkv_BTN, grads = operands(2, 6, 4, 2, 16, torch.bfloat16)
    transform = transform_of(6, 4, 8)
    plain = results(reference_shape_heads, qkv_BTN, grads, transform)
    for one, other in zip(results(shape_heads, qkv_BTN, grads, transform), plain, strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("gain", [False, True])
def test_a_compiled_graph_holds_it_whole(gain):
    qkv_BTN, grads = operands(2, 6, 4, 2, 16, torch.bfloat16)
    transform = transform_of(6, 4, 8, gain=gain)

    def around(x_BTN, heads, kv_heads, transform):
        return [2 * part for part in fast_heads(x_BTN + 1, heads, kv_heads, transform)]

    compiled = results(torch.compile(around, fullgraph=True, backend="aot_eager"), qkv_BTN, grads, transform)
    for one, other in zip(compiled, results(around, qkv_BTN, grads, transform), strict=True):
        assert one.equal(other)


def gain_part(heads=4, layers=3):
    class Context:
        pass

    context = Context()
    context.heads, context.layers = heads, layers
    part = QKGainModule(context, 1.5)
    torch.nn.init.normal_(part.gain_LH)
    return part


def test_one_transform_does_what_the_parts_of_a_model_do():
    parts = [QKNormModule(), RotaryModule(8, 10_000.0, 12), gain_part()]
    qkv_BTN, grads = operands(2, 9, 4, 2, 16, torch.float32)

    def by_parts(qkv_BTN, heads, kv_heads, _):
        q, k, v = qkv_BTN.unflatten(-1, (-1, 16)).split((heads, kv_heads, kv_heads), dim=2)
        for part in chosen:
            q, k = part(q, k, 1, None)
        return q, k, v

    for chosen in ([], parts[:1], parts[1:2], parts[2:], parts[:2], parts[1:], parts[::2], parts):
        transform = fused_transform(chosen, 1)
        fused = reference_shape_heads(qkv_BTN, 4, 2, transform)
        assert all(one.equal(other) for one, other in zip(fused, by_parts(qkv_BTN, 4, 2, None), strict=True))
    check(qkv_BTN, grads, transform)
    whole = torch.compile(lambda x: shape_heads(x, 4, 2, fused_transform(parts, 1)), fullgraph=True, backend="aot_eager")
    assert all(one.equal(other) for one, other in zip(whole(qkv_BTN), by_parts(qkv_BTN, 4, 2, None), strict=True))
    assert fused_transform(parts, 2).gain_H.equal(parts[2].gain_LH[2])


def test_the_gain_of_a_model_learns_through_the_transform():
    part = gain_part()
    qkv_BTN, grads = operands(2, 9, 4, 2, 16, torch.float32)
    torch.autograd.backward(fast_heads(qkv_BTN, 4, 2, fused_transform([part], 1)), grads)
    exact_H = (qkv_BTN[..., :64].unflatten(-1, (4, 16)) * grads[0]).sum((0, 1, 3))
    torch.testing.assert_close(part.gain_LH.grad[1], exact_H)
    assert part.gain_LH.grad[::2].count_nonzero() == 0


def test_other_orders_and_other_parts_have_no_transform():
    norm, rotary, gain = QKNormModule(), RotaryModule(8, 10_000.0, 12), gain_part()
    orders = (
        [rotary, norm],
        [gain, norm],
        [gain, rotary],
        [norm, norm],
        [rotary, rotary],
        [gain, gain],
        [norm, PositionPart()],
    )
    assert [fused_transform(order, 0) for order in orders] == [None] * 7


def test_the_reference_norms_then_turns_then_gains():
    qkv_BTN, _ = operands(1, 3, 2, 1, 4, torch.float64)
    transform = transform_of(3, 2, 2)
    q_BTHK, k_BTGK, v_BTGK = reference_shape_heads(qkv_BTN, 2, 1, transform)
    n_BTHK = rms_norm(qkv_BTN.unflatten(-1, (4, 4)))
    cos_T, sin_T = transform.cos_TF[:3, 0].double(), transform.sin_TF[:3, 0].double()
    for head, out_TK in enumerate((q_BTHK[0, :, 0], q_BTHK[0, :, 1], k_BTGK[0, :, 0])):
        n_TK, gain = n_BTHK[0, :, head], transform.gain_H[head].double() if head < 2 else 1.0
        turned = n_TK[:, 0] * cos_T + n_TK[:, 1] * sin_T, n_TK[:, 1] * cos_T - n_TK[:, 0] * sin_T
        torch.testing.assert_close(out_TK, gain * torch.stack((*turned, n_TK[:, 2], n_TK[:, 3]), dim=1))
    assert v_BTGK.equal(qkv_BTN[..., 12:].unflatten(-1, (1, 4)))


AHEAD = """
from fairway.kernels.heads_triton import shape_heads_backward_kernel, shape_heads_kernel
from optim.ahead import compiled, narrow_loads

types = dict.fromkeys(("qkv", "q", "k", "dq", "dk", "dv", "d_qkv"), "*bf16")
types |= dict.fromkeys(("gain", "cos", "sin", "d_gain"), "*fp32")
for kernel in (shape_heads_kernel, shape_heads_backward_kernel):
    for frequencies, card in ((8, 80), (8, 90), (32, 90)):
        constants = dict(H=8, G=4, K=64, F=frequencies, NORM=True, GAIN=True, EPSILON=1e-7, BN=32)
        names = [name for name in kernel.__code__.co_varnames[: kernel.__code__.co_argcount] if name not in constants]
        kinds = {name: types.get(name, "i32") for name in names}
        ptx, registers, spilled, _ = compiled(kernel, kinds, constants, names, card, num_warps=4)
        said = (kernel.__name__, frequencies, card, registers, spilled, narrow_loads(ptx))
        assert registers <= 80 and spilled == narrow_loads(ptx) == 0, said
"""


def test_the_kernels_fit_in_registers_and_load_sixteen_bytes_at_a_time(tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    code, said = compile_ahead(AHEAD, tmp_path)
    assert code == 0, said[-2000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card, and --gpu")
def test_the_card_gives_the_reference_at_the_size_of_training():
    qkv_BTN, grads = operands(8, 2048, 8, 4, 64, torch.bfloat16)
    qkv_BTN, grads = qkv_BTN.cuda(), [grad.cuda() for grad in grads]
    transform = transform_of(2048, 8, 16, device="cuda")
    rounding = {torch.bfloat16: {"rtol": 1.01 * 2**-8, "atol": 5e-5}}
    check(qkv_BTN, grads, transform, shape_heads, rounding)
    turned = [grad.transpose(1, 2).contiguous().transpose(1, 2) for grad in grads]
    check(qkv_BTN, turned, transform, shape_heads, rounding)
