import pytest
import torch

from fairway.kernels.blend import Blend, BlendFunction, begin_blend, blend, blend_sums, reference_blend, taken
from optim.ahead import compile_ahead

# Against float64. A tensor's gradient: a vector and a product rounded to bfloat16, half a unit in the last place (2^-8)
# each. Sums over rows are float32, of exact products.
TOLERANCE = {torch.bfloat16: {"rtol": 1.01 * 2**-7, "atol": 0}, torch.float32: {"rtol": 1e-6, "atol": 0}}
SUMS = {"rtol": 1e-5, "atol": 1e-4}


@pytest.fixture(autouse=True)
def interpreted(request):
    """Launches on CPU tensors need the interpreter, which conftest.py turns off for a card."""
    if torch.cuda.is_available() and "card" not in request.node.name:
        pytest.skip("runs in the interpreter, without --gpu")


@pytest.fixture
def poisoned():
    """What torch.empty gives is NaN until it is written."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def operands(count, *shape, dtype=torch.bfloat16, seed=0):
    """(tensors, vectors, the gradient of their blend)."""
    generator = torch.Generator().manual_seed(seed)
    *xs, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(count + 1))
    return xs, [torch.randn(shape[-1], generator=generator) for _ in range(count)], grad


def results(function, xs, vectors, grad):
    """The blend, and the gradients of tensors and vectors."""
    leaves = [t.detach().requires_grad_() for t in (*xs, *vectors)]
    out = function(leaves[: len(xs)], leaves[len(xs) :])
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def fast(xs, vectors):
    return BlendFunction.apply(len(xs), *xs, *vectors)


def check(xs, vectors, grad, function=fast, sums=SUMS):
    out, *got = results(function, xs, vectors, grad)
    assert out.equal(reference_blend(xs, vectors))
    exact = results(reference_blend, *([t.double() for t in some] for some in (xs, vectors)), grad.double())[1:]
    for place, (one, other) in enumerate(zip(got, exact, strict=True)):
        of_vector = place >= len(xs)
        assert one.dtype == (torch.float32 if of_vector else grad.dtype)
        torch.testing.assert_close(one.double(), other, **(sums if of_vector else TOLERANCE[grad.dtype]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_the_vectors_gradients_are_the_reference_s(poisoned, count, dtype):
    check(*operands(count, 3, 37, 64, dtype=dtype))


@pytest.mark.parametrize("shape", [(1, 512), (33, 512), (2, 100, 300), (5, 7), (40, 256), (0, 64), (2, 1, 3, 16)])
def test_rows_and_widths_may_be_any(poisoned, shape):
    check(*operands(2, *shape))


def test_tensors_need_not_lie_packed(poisoned):
    xs, vectors, grad = operands(2, 19, 6, 48)
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in xs]
    check(turned, vectors, grad)
    check(xs, vectors, grad[:, :, :1].expand_as(grad))
    check([xs[0], torch.randn(19, 6, 96).bfloat16()[..., ::2]], vectors, grad)


def test_sums_are_the_same_each_time():
    xs, _, grad = operands(3, 4000, 64)
    assert torch.equal(blend_sums(grad, xs), blend_sums(grad, xs))


def test_a_processor_takes_the_reference():
    xs, vectors, grad = operands(3, 6, 16)
    for one, other in zip(results(blend, xs, vectors, grad), results(reference_blend, xs, vectors, grad), strict=True):
        assert one.equal(other)


def test_blends_of_blends_are_one_sum_and_a_tensor_stands_in_it_once():
    (x, y, _), (a, b, c), _ = operands(3, 5, 8, dtype=torch.float32)
    nested = begin_blend(begin_blend(x, a).plus(y, b), c).plus(y, a)
    assert [one is other for (one, _), other in zip(nested.terms, (x, y), strict=True)] == [True, True]
    torch.testing.assert_close(taken(nested), c * (a * x + b * y) + a * y)
    assert isinstance(nested, Blend) and taken(x) is x and len(begin_blend(x, a).plus(x, b).terms) == 1


def test_a_compiled_graph_holds_it_whole():
    xs, vectors, grad = operands(3, 6, 4, 16)

    def both(xs, vectors):
        return fast([2 * xs[0], *xs[1:]], vectors) + 1

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for one, other in zip(results(compiled, xs, vectors, grad), results(both, xs, vectors, grad), strict=True):
        assert one.equal(other)


AHEAD = """
from fairway.kernels.blend import SUMS_AT_ONCE, SUMS_ROWS, SUMS_WIDTH
from fairway.kernels.blend_triton import blend_sums_kernel
from optim.ahead import compiled, narrow_loads

types = {name: "*bf16" for name in ("grad", "x0", "x1", "x2")} | {"parts": "*fp32", "N": "i32", "PROGRAMS": "i32"}
for count in range(1, SUMS_AT_ONCE + 1):
    for card in (80, 90):
        constants = dict(D=512, COUNT=count, BN=SUMS_ROWS, BD=SUMS_WIDTH)
        ptx, registers, spilled, shared = compiled(blend_sums_kernel, types, constants, list(types), card, num_warps=4)
        said = (count, card, registers, spilled, shared, narrow_loads(ptx))
        # Four programs a multiprocessor, and on an A100 too.
        assert registers <= 112 and shared <= 40_000 and spilled == narrow_loads(ptx) == 0, said
"""


def test_the_kernel_fits_in_registers_and_loads_sixteen_bytes_at_a_time(tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    code, said = compile_ahead(AHEAD, tmp_path)
    assert code == 0, said[-2000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card, and --gpu")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_card_gives_the_reference_at_the_size_of_training(count):
    xs, vectors, grad = operands(count, 48, 2048, 512)
    # Float32 sums of 98,304 products, some 400 one after the other in each place of a tile.
    check([x.cuda() for x in xs], [v.cuda() for v in vectors], grad.cuda(), blend, {"rtol": 1e-4, "atol": 1e-2})
