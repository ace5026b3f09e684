"""The loss of a linear head with capped logits: the sweep against the reference in float64, forwards and backwards."""

import os
import re
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F

from fairway.kernels import cross_entropy as cross_entropy_file
from fairway.kernels.cross_entropy import (
    WIDEST_ROW,
    LinearCrossEntropy,
    cross_entropy_sweep,
    linear_cross_entropy,
    reference_linear_cross_entropy,
    sweeps_logits,
)
from fairway.model import head as head_file
from fairway.model.context import Carry, plain_linear
from fairway.model.head import AsymmetricSoftcapModule, FinalNormModule, SoftcapModule, TiedHeadModule, head_loss

pytest.importorskip("triton", reason="the sweep is a kernel in Triton, which is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # with --gpu there is no interpreter, and a card instead
CAPS = [None, 30.0, 2.5, 200.0]  # 200: above what may be taken without the row's maximum


def head(n, v, d=24, spread=8.0, dtype=torch.float32, seed=None):
    """x, table and targets whose logits have about this standard deviation; fresh in every run unless seeded."""
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    x_ND = torch.randn(n, d, generator=generator).to(dtype)
    table_VD = (torch.randn(v, d, generator=generator) * spread / d**0.5).to(dtype)
    return x_ND.to(DEVICE), table_VD.to(DEVICE), torch.randint(v, (n,), generator=generator).to(DEVICE)


def poison(monkeypatch):
    """torch.empty gives NaN, so that what no kernel writes is seen."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size, **options).fill_(float("nan")))


def loss_and_gradients(function, x_ND, table_VD, targets_N, cap, factor=1.0):
    leaves = [t.clone().requires_grad_() for t in (x_ND, table_VD)]
    loss = function(*leaves, targets_N, cap)
    return loss.detach(), *torch.autograd.grad(loss * factor, leaves)


def exact(x_ND, table_VD, targets_N, cap, factor=1.0):
    return loss_and_gradients(reference_linear_cross_entropy, x_ND.double(), table_VD.double(), targets_N, cap, factor)


def off(got, want):
    """Error's norm by the norm of what is wanted."""
    return float((got.double() - want).norm() / want.norm())


def literal_loss(z_NV, targets_N, cap):
    """Written out, position by position."""
    capped = z_NV if cap is None else cap * (z_NV / cap).tanh()
    return sum(row.logsumexp(0) - row[target] for row, target in zip(capped, targets_N, strict=True)) / len(targets_N)


@pytest.mark.parametrize("cap", CAPS)
def test_the_reference_is_the_mean_surprise_of_the_capped_logits(cap):
    x_ND, table_VD, targets_N = head(7, 11, dtype=torch.float64)
    got = reference_linear_cross_entropy(x_ND.view(1, 7, -1), table_VD, targets_N.view(1, 7), cap)
    torch.testing.assert_close(got, literal_loss(x_ND @ table_VD.T, targets_N, cap), rtol=1e-12, atol=0)


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("n, v", [(5, 64), (3, 50), (1, 2), (4, 1), (2, 4096), (3, 5000)])
def test_in_float32_the_sweep_is_the_reference_to_rounding(n, v, cap, monkeypatch):
    poison(monkeypatch)
    inputs = head(n, v)
    got, want = loss_and_gradients(LinearCrossEntropy.apply, *inputs, cap, 3.0), exact(*inputs, cap, 3.0)
    # tanh is off by 1e-7, so capped logits by cap times that, and probabilities relatively as much; inputs reach 10.
    near = dict(rtol=1e-4, atol=2e-5 + 1e-6 * (cap or 0))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one.double(), other, **near)


@pytest.mark.parametrize("cap", CAPS)
def test_every_logits_gradient_is_near_not_only_their_sums(cap):
    x_ND, table_VD, targets_N = head(6, 300)
    losses_N, d_NV = cross_entropy_sweep(x_ND, table_VD, targets_N, cap)
    z_NV = (x_ND @ table_VD.T).double().requires_grad_()
    capped_NV = z_NV if cap is None else cap * (z_NV / cap).tanh()
    wanted_N = F.cross_entropy(capped_NV, targets_N, reduction="none")
    (want_NV,) = torch.autograd.grad(wanted_N.mean(), z_NV)
    torch.testing.assert_close(losses_N.double(), wanted_N.detach(), rtol=1e-5, atol=5e-5)
    # Where tanh is 1 to float32's last digits its slope is what those digits leave: hence the absolute part.
    torch.testing.assert_close(d_NV.double(), want_NV, rtol=5e-4, atol=2e-7)


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("n, v", [(8, 512), (7, 300), (2, 2048)])
def test_in_bfloat16_it_errs_by_what_rounding_the_logits_and_the_result_costs(n, v, cap):
    inputs = head(n, v, spread=4.0, dtype=torch.bfloat16)
    got, want = loss_and_gradients(LinearCrossEntropy.apply, *inputs, cap), exact(*inputs, cap)
    # Logits of up to 20 in bfloat16 are off by up to 2^-5, and so are probabilities, relatively.
    torch.testing.assert_close(got[0].double(), want[0], rtol=0, atol=2**-4)
    assert got[0].dtype == torch.float32
    for one, other in zip(got[1:], want[1:], strict=True):
        assert one.dtype == torch.bfloat16 and off(one, other) < 2**-5
    plain = loss_and_gradients(reference_linear_cross_entropy, *inputs, cap)
    torch.testing.assert_close(got[0], plain[0], rtol=1e-5, atol=1e-5)  # from the same rounded logits
    for one, other in zip(got[1:], plain[1:], strict=True):
        assert off(one, other.double()) < 2**-7


@pytest.mark.parametrize("cap", [None, 30.0, 64.0, 500.0])
@pytest.mark.parametrize("level", [-3e4, -200.0, 0.0, 200.0, 3e4])
def test_far_logits_give_finite_losses_and_no_gradient_beyond_the_cap(cap, level):
    """All logits of a row at one level, but one: 1e4 lower at the target, then 1e4 higher."""
    n, v = 2, 40
    targets_N = torch.tensor([3, 39], device=DEVICE)
    z_NV = torch.full((n, v), level, device=DEVICE)
    z_NV[0, 3] -= 1e4
    z_NV[1, 39] += 1e4
    # A product with the unit matrix gives any logits that one likes.
    losses_N, d_NV = cross_entropy_sweep(z_NV, torch.eye(v, device=DEVICE), targets_N, cap)
    z_NV = z_NV.double().requires_grad_()
    capped_NV = z_NV if cap is None else cap * (z_NV / cap).tanh()
    wanted_N = F.cross_entropy(capped_NV, targets_N, reduction="none")
    torch.testing.assert_close(losses_N.double(), wanted_N.detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(d_NV.double(), torch.autograd.grad(wanted_N.mean(), z_NV)[0], rtol=1e-4, atol=1e-7)


def test_logits_alike_cost_the_logarithm_of_their_number():
    targets_N = torch.tensor([0, 5, 1023], device=DEVICE)
    losses_N, _ = cross_entropy_sweep(torch.zeros(3, 8, device=DEVICE), torch.ones(1024, 8, device=DEVICE), targets_N, 30.0)
    assert losses_N.exp().tolist() == pytest.approx([1024] * 3, rel=1e-5)


def test_only_what_needs_a_gradient_gets_one():
    x_ND, table_VD, targets_N = head(4, 30)
    for chosen in (0, 1):
        leaves = [x_ND.clone(), table_VD.clone()]
        leaves[chosen].requires_grad_()
        LinearCrossEntropy.apply(*leaves, targets_N, 30.0).backward()
        want = exact(x_ND, table_VD, targets_N, 30.0)[1 + chosen]
        torch.testing.assert_close(leaves[chosen].grad.double(), want, rtol=1e-4, atol=1e-5)
        assert leaves[1 - chosen].grad is None
    with torch.no_grad():
        assert LinearCrossEntropy.apply(x_ND, table_VD, targets_N, 30.0).isfinite()


def test_the_inputs_stay_and_two_runs_agree_to_the_bit():
    inputs = head(5, 70, dtype=torch.bfloat16)
    before = [t.clone() for t in inputs]
    one, two = (loss_and_gradients(LinearCrossEntropy.apply, *inputs, 30.0) for _ in range(2))
    assert all(map(torch.equal, one, two)) and all(map(torch.equal, inputs, before))


def test_the_operation_says_the_truth_about_itself():
    x_ND, table_VD, targets_N = head(4, 30)
    torch.library.opcheck(cross_entropy_sweep, (x_ND, table_VD, targets_N, 30.0))
    torch.library.opcheck(cross_entropy_sweep, (x_ND, table_VD, targets_N, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_the_reference_runs_and_is_what_the_spine_always_did(dtype):
    x_ND, table_VD, targets_N = (t.cpu() for t in head(6, 40, dtype=dtype))
    assert not sweeps_logits(x_ND, table_VD)

    def spine(x_BTD, table_VD, targets_BT, cap):
        z_BTV = F.linear(x_BTD, table_VD)
        z_BTV = cap * torch.tanh(z_BTV.float() / cap)
        return F.cross_entropy(z_BTV.float().flatten(0, 1), targets_BT.flatten())

    x_BTD, targets_BT = x_ND.view(2, 3, -1), targets_N.view(2, 3)
    got = loss_and_gradients(linear_cross_entropy, x_BTD, table_VD, targets_BT, 30.0)
    assert all(map(torch.equal, got, loss_and_gradients(spine, x_BTD, table_VD, targets_BT, 30.0)))


def test_a_card_takes_bfloat16_rows_that_fit(monkeypatch):
    monkeypatch.setattr(cross_entropy_file, "runs_triton", lambda device: True)
    x_ND, table_VD, targets_N = head(6, 40, dtype=torch.bfloat16)
    assert sweeps_logits(x_ND, table_VD) and not sweeps_logits(x_ND.float(), table_VD)
    assert not sweeps_logits(x_ND.float(), table_VD.float())
    assert not sweeps_logits(x_ND, torch.zeros(WIDEST_ROW + 1, 24, dtype=torch.bfloat16, device=DEVICE))
    x_BTD, targets_BT = x_ND.view(2, 3, -1), targets_N.view(2, 3)
    got = loss_and_gradients(linear_cross_entropy, x_BTD, table_VD, targets_BT, 30.0)
    want = loss_and_gradients(LinearCrossEntropy.apply, x_ND, table_VD, targets_N, 30.0)
    assert got[1].shape == x_BTD.shape and torch.equal(got[1].flatten(0, 1), want[1])
    assert torch.equal(got[0], want[0]) and torch.equal(got[2], want[2])


def test_compiled_it_is_the_same_and_the_logits_are_not_copied(monkeypatch):
    monkeypatch.setattr(cross_entropy_file, "runs_triton", lambda device: True)
    x_ND, table_VD, targets_N = head(6, 40, dtype=torch.bfloat16)
    graphs = []

    def watch(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def loss(x_ND, table_VD, targets_N, cap):
        return linear_cross_entropy(torch.tanh(x_ND), table_VD, targets_N, cap)

    want = loss_and_gradients(loss, x_ND, table_VD, targets_N, 30.0, 0.125)
    torch._dynamo.reset()
    for backend in ("aot_eager", aot_autograd(fw_compiler=watch, bw_compiler=watch)):
        compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend=backend)
        got = loss_and_gradients(compiled, x_ND, table_VD, targets_N, 30.0, 0.125)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
    nodes = [node for graph in graphs for node in graph.graph.nodes]
    assert sum("cross_entropy_sweep" in str(node.target) for node in nodes) == 1
    # Of the size of the logits, only the sweep's own result, its transpose and the graphs' handing it on.
    large = [n for n in nodes if n.op == "call_function" and getattr(n.meta.get("val"), "shape", None) in ((6, 40), (40, 6))]
    assert {str(node.target) for node in large} <= {"<built-in function getitem>", "aten.t.default"}


# --- which heads take it


class HalvedHead(TiedHeadModule):
    """A head of one's own that is a product with another table."""

    def table(self, carry):
        return carry.table_VD / 2


@pytest.mark.parametrize("linear", [plain_linear, lambda x, weight, name: plain_linear(x, weight, name) * 0.9])
@pytest.mark.parametrize(
    "parts, cap",
    [
        ((FinalNormModule(), TiedHeadModule(), SoftcapModule(5.0)), 5.0),
        ((HalvedHead(), SoftcapModule(5.0)), 5.0),
        ((FinalNormModule(), TiedHeadModule()), None),
        ((TiedHeadModule(), FinalNormModule()), "logits"),
        ((TiedHeadModule(), AsymmetricSoftcapModule(5.0)), "logits"),
        ((TiedHeadModule(), SoftcapModule(9.0), SoftcapModule(5.0)), "logits"),
        ((FinalNormModule(), SoftcapModule(5.0)), "logits"),
        ((SoftcapModule(5.0),), "logits"),
    ],
)
def test_a_head_is_one_operation_where_its_parts_say_so_and_its_loss_the_same_to_the_bit(parts, cap, linear, monkeypatch):
    x_ND, table_VD, targets_N = (t.cpu() for t in head(6, 24))
    x_BTD, targets_BT, carry = x_ND.view(2, 3, -1), targets_N.view(2, 3), Carry(None, torch.float32, linear)
    caps = []
    monkeypatch.setattr(
        head_file, "linear_cross_entropy", lambda *inputs: caps.append(inputs[3]) or reference_linear_cross_entropy(*inputs)
    )

    def plain(x_BTD, table_VD):
        carry.table_VD = table_VD
        for part in parts:
            x_BTD = part(x_BTD, carry)
        return F.cross_entropy(x_BTD.float().flatten(0, 1), targets_BT.flatten())

    def whole(x_BTD, table_VD):
        carry.table_VD = table_VD
        return head_loss(torch.nn.ModuleList(parts), x_BTD, targets_BT, carry)

    leaves = [x_BTD.clone().requires_grad_(), table_VD.clone().requires_grad_()]
    got, want = (function(*leaves) for function in (whole, plain))
    assert torch.equal(got, want)
    gradients = [torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True) for loss in (got, want)]
    assert all(map(torch.equal, *gradients))
    assert caps == ([] if cap == "logits" or linear is not plain_linear else [cap])


# --- without a card, and on one

AHEAD = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fairway.kernels.cross_entropy_triton import cross_entropy_kernel
from fairway.kernels.launch import triton_kernel

kinds = dict(z_NV="*bf16", targets_N="*i64", losses_N="*fp32", weight="fp32", slope="fp32", height="fp32")
kinds |= dict.fromkeys(("V", "CAPPED", "BOUNDED", "BLOCK"), "constexpr")
whole = {(place,): [["tt.divisibility", 16]] for place in range(3)}
for arch in (80, 90):
    for v, capped, bounded, block, warps in (
        (8192, True, True, 8192, 4), (8192, False, False, 8192, 4), (8192, True, False, 8192, 4),
        (1024, True, True, 1024, 1), (5000, True, True, 8192, 4), (16384, True, True, 16384, 8),
    ):
        constants = {(6,): v, (7,): capped, (8,): bounded, (9,): block}
        source = ASTSource(triton_kernel(cross_entropy_kernel), kinds, constants, attrs=whole)
        made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})
        text = made.asm["ptx"]
        wide = [f"{way}.global.v4" in text for way in ("ld", "st")]
        # The target's gradient is stored after all threads have stored theirs.
        waits = text.rindex("bar.") > text.rindex("st.global.v4") if warps > 1 else True
        open(f"{sys.argv[1]}/{arch}-{v}-{capped}-{bounded}.cubin", "wb").write(made.asm["cubin"])
        print(arch, v, *wide, waits)
"""


def test_it_compiles_ahead_of_time_without_spills_and_moves_sixteen_bytes_at_once(tmp_path):
    cuobjdump = pytest.importorskip("triton.backends.nvidia").__path__[0] + "/bin/cuobjdump"
    (tmp_path / "ahead.py").write_text(AHEAD)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, tmp_path / "ahead.py", tmp_path], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 12 and all(line[2:] == ["True"] * 3 for line in lines), done.stdout
    if not os.path.exists(cuobjdump):
        pytest.skip("this Triton has no cuobjdump to read the registers with")
    for made in tmp_path.glob("*.cubin"):
        said = subprocess.run([cuobjdump, "-res-usage", made], capture_output=True, text=True)
        usage = dict(re.findall(r"(\w+):(\d+)", said.stdout + said.stderr))
        assert usage["STACK"] == usage["LOCAL"] == "0", (made.name, usage)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card, and --gpu")
@pytest.mark.parametrize("n, v", [(98_304, 8192), (5000, 1024), (777, 5000)])
def test_on_the_card_at_full_size(n, v):
    x_ND, table_VD, targets_N = (t.cuda() for t in head(n, v, d=512, spread=3.0, dtype=torch.bfloat16))
    assert sweeps_logits(x_ND, table_VD)
    got = loss_and_gradients(linear_cross_entropy, x_ND, table_VD, targets_N, 30.0, 0.125)
    assert all(map(torch.equal, got, loss_and_gradients(linear_cross_entropy, x_ND, table_VD, targets_N, 30.0, 0.125)))
    # The reference in float64, a few thousand rows at a time.
    sums = [0.0, [], 0.0]
    for first, end in pairwise([*range(0, n, 8192), n]):
        loss, dx_ND, dtable_VD = exact(x_ND[first:end], table_VD, targets_N[first:end], 30.0, 0.125)
        share = (end - first) / n
        sums = [sums[0] + loss * share, [*sums[1], dx_ND * share], sums[2] + dtable_VD * share]
    assert abs(got[0] - sums[0]) < 1e-3
    assert off(got[1], torch.cat(sums[1])) < 2**-6 and off(got[2], sums[2]) < 2**-6
