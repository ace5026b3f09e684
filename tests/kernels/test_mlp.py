"""The squared MLP's kernels in Triton's interpreter (on a card with --gpu) against plain torch in float64.

N rows, D width, M hidden units, E width of the output.
"""

from importlib.util import find_spec

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F

from fairway.kernels import mlp as mlp_file
from fairway.kernels.mlp import (
    LeakySquaredMLP,
    fits_mlp_tiles,
    leaky_squared_mlp,
    mlp_back,
    mlp_up,
    reference_leaky_squared_mlp,
)
from fairway.model.context import Carry, Initialiser, plain_linear
from fairway.model.mlp import SquaredModule
from optim.ahead import compile_ahead
from optim.interpreted import multiply_bfloat16

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# (N, D, M, E): rows beyond, at and below a tile of 128; one and several tiles of 128 units; widths of one and more steps.
SHAPES = [(1, 64, 128, 64), (130, 128, 256, 64), (300, 64, 512, 192), (128, 64, 384, 128)]
SLOPES = [0.5, 0.0, -0.3, 1.7]


def problem(n, d, m, e):
    """x, up, down and the output's gradient, bfloat16; fresh in every run."""
    x, up, down, go = torch.randn(n, d), torch.randn(m, d) / d**0.5, torch.randn(e, m) / m**0.5, torch.randn(n, e)
    return [tensor.bfloat16().to(DEVICE) for tensor in (x, up, down, go)]


def results(function, x, up, down, go, slope):
    leaves = [tensor.clone().requires_grad_() for tensor in (x, up, down)]
    out = function(*leaves, slope)
    return out.detach(), *torch.autograd.grad(out, leaves, go)


def off(got, want):
    """The error's norm by the norm of what is wanted."""
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.fixture(autouse=DEVICE.type == "cpu" and find_spec("triton") is not None)
def interpreted(monkeypatch):
    multiply_bfloat16(monkeypatch)


@pytest.fixture
def poisoned(monkeypatch):
    """What is allocated and not written stays NaN."""
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *args, make=make, **options: make(*args, **options).fill_(float("nan")))


def exact_square(x, up, slope):
    """(c, leaky(c)^2) in float64."""
    c = x.double() @ up.double().t()
    return c, torch.where(c > 0, c, slope * c).square()


@needs_triton
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_square_errs_by_one_unit_and_its_last_bit_is_the_sign(shape, slope, poisoned):
    x, up, _, _ = problem(*shape)
    got_NM, (c_NM, exact_NM) = mlp_up(x, up, slope), exact_square(x, up, slope)
    # One unit in the last place of 8 bits is 2^-7; c is summed in float32, so near zero p errs by what c does.
    allowed = 2**-7 * exact_NM + 1e-5 * exact_NM.sqrt() + 1e-10
    assert ((got_NM.double() - exact_NM).abs() <= allowed).all()
    odd_NM = (got_NM.view(torch.int16) & 1).bool()
    assert odd_NM[c_NM > 1e-5].all()
    # With slope 0 nothing is left that has a sign: the least number there is.
    assert not odd_NM[c_NM < -1e-5].any() if slope else (got_NM[c_NM < -1e-5].float() < 1e-40).all()


@needs_triton
def test_what_is_rounded_off_is_nothing_on_average():
    x, up, _, _ = problem(300, 64, 512, 64)
    c_NM, exact_NM = exact_square(x, up, 0.5)
    error_NM = mlp_up(x, up, 0.5).double() / exact_NM - 1
    for side in (c_NM > 1e-2, c_NM < -1e-2):
        # Uniform within 2^-7 of the value at most: of 75,000 errors the mean is within five deviations of zero.
        assert abs(error_NM[side].mean()) < 5 * 2**-7 / (3 * side.sum()) ** 0.5


@needs_triton
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_are_as_near_as_plain_torch_gets_in_bfloat16(shape, slope, poisoned):
    *tensors, go = problem(*shape)
    exact = results(reference_leaky_squared_mlp, *(t.double() for t in (*tensors, go)), slope)
    plain = results(reference_leaky_squared_mlp, *tensors, go, slope)
    got = results(LeakySquaredMLP.apply, *tensors, go, slope)
    for mine, theirs, want in zip(got, plain, exact, strict=True):
        assert mine.dtype == torch.bfloat16 and mine.shape == want.shape
        # Plain torch rounds the hidden units, the squares and the gradient; this the squares twice as coarsely, and the
        # interpreter cuts the gradient where a card rounds. Of 64 numbers both are known to a quarter of 2^-7.
        assert off(mine, want) < 1.6 * off(theirs, want) + 2**-9


@needs_triton
@pytest.mark.parametrize("slope", [0.5, 0.0])
def test_every_element_of_the_hidden_gradient_is_right(slope, poisoned):
    x, up, down, go = problem(130, 64, 512, 128)
    c_NM, _ = exact_square(x, up, slope)
    got_NM = mlp_back(go, down, mlp_up(x, up, slope), slope)
    before_NM = go.double() @ down.double()
    exact_NM = before_NM * torch.where(c_NM > 0, 2 * c_NM, 2 * slope**2 * c_NM)
    # The root halves p's error, 2^-8, and rounding adds at most 2^-7; sums in float32 are off by 1e-5.
    allowed = 1.6 * 2**-7 * exact_NM.abs() + 1e-5 * (before_NM.abs() + c_NM.abs()) + 1e-9
    assert ((got_NM.double() - exact_NM).abs() <= allowed).all()


@needs_triton
def test_a_unit_at_zero_gives_and_gets_nothing():
    x, up, down, go = problem(5, 64, 256, 64)
    x.zero_()
    for slope in (0.5, 0.0):
        out, dx, dup, ddown = results(LeakySquaredMLP.apply, x, up, down, go, slope)
        assert all(tensor.abs().max() < 1e-18 for tensor in (out, dx, dup, ddown))


@needs_triton
def test_what_is_not_a_number_stays_one():
    x, up, down, go = problem(5, 64, 256, 64)
    x[2, 3] = float("nan")
    out, dx, _, _ = results(LeakySquaredMLP.apply, x, up, down, go, 0.5)
    for tensor in (out, dx):
        assert tensor.isnan().any(1).tolist() == [row == 2 for row in range(5)]


@needs_triton
def test_leading_dimensions_strides_and_repetition():
    x, up, down, go = problem(6, 64, 256, 64)
    want = results(LeakySquaredMLP.apply, x, up, down, go, 0.5)
    turned = [torch.stack([t, t], -1)[..., 0] for t in (up, down)]
    views = [t.view(2, 3, 64).transpose(0, 1).contiguous().transpose(0, 1) for t in (x, go)]
    assert not any(t.is_contiguous() for t in (*turned, *views))
    got = results(LeakySquaredMLP.apply, views[0], *turned, views[1], 0.5)
    assert got[0].shape == (2, 3, 64) and all(torch.equal(g.reshape(w.shape), w) for g, w in zip(got, want, strict=True))


@needs_triton
def test_the_operations_say_the_truth_about_themselves():
    x, up, down, go = problem(3, 64, 256, 64)
    torch.library.opcheck(mlp_up, (x, up, 0.5))
    torch.library.opcheck(mlp_back, (go, down, mlp_up(x, up, 0.5), 0.5))


@needs_triton
def test_compiled_it_is_the_same_and_keeps_one_tensor_of_hidden_width():
    *tensors, go = problem(7, 64, 256, 64)
    kept = []

    def backward(graph, inputs):
        kept.extend(tensor for tensor in inputs if tensor.shape[-1] == 256 and tensor.shape[0] == 7)
        return graph.forward

    backend = aot_autograd(fw_compiler=lambda graph, inputs: graph.forward, bw_compiler=backward)
    compiled = torch.compile(LeakySquaredMLP.apply, fullgraph=True, backend=backend)
    want = results(LeakySquaredMLP.apply, *tensors, go, 0.5)
    assert all(torch.equal(*pair) for pair in zip(results(compiled, *tensors, go, 0.5), want, strict=True))
    assert len(kept) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_cpu_takes_the_reference(dtype):
    x, up, down, _ = (tensor.cpu().to(dtype) for tensor in problem(3, 64, 256, 64))
    assert not fits_mlp_tiles(x, up, down)
    for slope in SLOPES:
        hidden = F.linear(x, up)
        want = F.linear(torch.where(hidden > 0, hidden, slope * hidden).square(), down)
        torch.testing.assert_close(leaky_squared_mlp(x, up, down, slope), want)


@pytest.mark.parametrize(
    "n, d, m, e, dtype, fits",
    [
        (1, 64, 256, 64, torch.bfloat16, True),
        (1000, 512, 1792, 192, torch.bfloat16, True),
        (0, 64, 256, 64, torch.bfloat16, False),
        (4, 96, 256, 64, torch.bfloat16, False),
        (4, 64, 192, 64, torch.bfloat16, False),
        (4, 64, 256, 32, torch.bfloat16, False),
        (4, 64, 256, 64, torch.float32, False),
    ],
)
def test_a_card_takes_bfloat16_in_whole_tiles(n, d, m, e, dtype, fits, monkeypatch):
    monkeypatch.setattr(mlp_file, "copies_tiles", lambda device: True)
    tensors = [torch.zeros(shape, dtype=dtype) for shape in ((n, d), (m, d), (e, m))]
    assert fits_mlp_tiles(*tensors) == fits
    assert not fits_mlp_tiles(tensors[0].float(), *tensors[1:])


def squared_module(slopes):
    class Context:
        width, layers, init = 64, 2, Initialiser(3)

    module = SquaredModule(Context, 4.0, slopes)
    with torch.no_grad():
        module.down_LDM.normal_()
    return module


@pytest.mark.parametrize("slopes", [(0.5,), (0.0, 0.3)])
def test_the_site_gives_the_same_by_one_operation_and_by_products_that_are_watched(slopes):
    module, n_BTD, gain_LD = squared_module(slopes), torch.randn(2, 3, 64), torch.randn(2, 64)
    seen = []

    def watched(x, weight, name):
        seen.append(name)
        return plain_linear(x, weight, name)

    for layer in (0, 1):
        plain, watching = Carry(None, torch.float32), Carry(None, torch.float32, watched)
        want = module(n_BTD, module.matrices(watching), layer, watching)
        torch.testing.assert_close(module(n_BTD, module.matrices(plain), layer, plain), want, rtol=1e-5, atol=1e-4)
        gained = module(n_BTD, module.matrices(plain, gain_LD), layer, plain)
        torch.testing.assert_close(gained, gain_LD[layer] * want, rtol=1e-5, atol=1e-4)
    assert seen == [f"blocks.{layer}.mlp.{part}" for layer in (0, 1) for part in ("up", "down")]


@needs_triton
def test_the_site_runs_the_kernels_where_they_fit(monkeypatch):
    monkeypatch.setattr(mlp_file, "copies_tiles", lambda device: True)
    module, n_BTD = squared_module((0.5,)).to(DEVICE), torch.randn(2, 3, 64, device=DEVICE).bfloat16()
    carry = Carry(None, torch.bfloat16)
    out_BTD = module(n_BTD, module.matrices(carry), 1, carry)
    up_MD, down_DM = (bank[1].detach().double() for bank in (module.up_LMD, module.down_LDM))
    want_BTD = reference_leaky_squared_mlp(n_BTD.double(), up_MD, down_DM, 0.5)
    assert "LeakySquaredMLP" in type(out_BTD.grad_fn).__name__ and off(out_BTD.detach(), want_BTD) < 2**-6
    out_BTD.sum().backward()
    assert module.up_LMD.grad[1].abs().sum() > 0 and module.up_LMD.grad[0].abs().sum() == 0


AHEAD = """
from fairway.kernels.capability import TILE_MEMORY
from fairway.kernels.mlp import TILE_DEPTH, TILE_ROWS, TILE_STAGES, TILE_UNITS, TILE_WARPS
from fairway.kernels.mlp_triton import mlp_back_kernel, mlp_up_kernel
from optim.ahead import compiled

def tiles(kind, rows, columns):
    return f"tensordesc<{kind}[{rows},{columns}]>"

numbers = dict(N="i32", steep="fp32", shallow="fp32", fall="fp32")
rows, whole = tiles("bf16", TILE_ROWS, TILE_DEPTH), tiles("bf16", TILE_ROWS, TILE_UNITS)
words = dict(x_desc=rows, up_desc=tiles("bf16", TILE_UNITS, TILE_DEPTH), p_desc=tiles("i32", TILE_ROWS, TILE_UNITS // 4))
ahead = dict(go_desc=rows, down_desc=tiles("bf16", TILE_DEPTH, TILE_UNITS), p_desc=whole, d_desc=whole)
constants = dict(M=2048, K=512, BN=TILE_ROWS, BM=TILE_UNITS, BK=TILE_DEPTH)
for kernel, types in ((mlp_up_kernel, words), (mlp_back_kernel, ahead)):
    names = kernel.__code__.co_varnames[: kernel.__code__.co_argcount]
    own = constants | (dict(PROGRAMS=264) if "PROGRAMS" in names else {})
    kinds = types | {name: kind for name, kind in numbers.items() if name in names}
    aligned = ["N"] if "N" in names else []
    ptx, registers, stack, shared = compiled(kernel, kinds, own, aligned, 90, num_warps=TILE_WARPS, num_stages=TILE_STAGES)
    said = (kernel.__name__, registers, stack, shared)
    # Two programs on a multiprocessor of 65,536 registers and 228 KiB, of which each takes one for itself.
    assert stack == 0 and 2 * registers * 32 * TILE_WARPS <= 65_536 and shared <= min(113 * 1024, TILE_MEMORY), said
    assert "wgmma" in ptx and "cp.async.bulk.tensor" in ptx, said
"""


@needs_triton
def test_the_kernels_compile_ahead_of_time_for_hopper_without_spills(tmp_path):
    code, said = compile_ahead(AHEAD, tmp_path)
    assert code == 0, said[-2000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card, and --gpu")
@pytest.mark.parametrize("shape", [(98_304, 512, 2048, 512), (98_304, 512, 1536, 512), (5_001, 512, 2048, 512)])
@pytest.mark.parametrize("slope", [0.5, 0.0])
def test_on_the_card_at_full_size(shape, slope):
    *tensors, go = problem(*shape)
    if not fits_mlp_tiles(*tensors):
        pytest.skip("this card has no TMA")
    got = results(leaky_squared_mlp, *tensors, go, slope)
    again = results(leaky_squared_mlp, *tensors, go, slope)
    assert all(torch.equal(*pair) for pair in zip(got, again, strict=True))
    exact = results(reference_leaky_squared_mlp, *(tensor.double() for tensor in (*tensors, go)), slope)
    assert all(off(mine, want) < 2**-7 for mine, want in zip(got, exact, strict=True))
