import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from conformance.table import bounds_of
from fairway.kernels import attention as attention_file
from fairway.kernels import capability as capability_file
from fairway.kernels.attention import (
    attention,
    attention_backends,
    fits_varlen,
    reference_attention,
    varlen_attention,
    window_mask,
)
from fairway.kernels.capability import capability, copies_tiles, plain_forms, runs_triton, settle_threads
from fairway.kernels.norm import rms_norm


def qkv(batch, length, heads, kv_heads, width, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, length, heads, width), (batch, length, kv_heads, width), (batch, length, kv_heads, width)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def literal_attention(q_BTHK, k_BTGK, v_BTGK):
    """One head and one position at a time, in float64."""
    q, k, v = (t.detach().double() for t in (q_BTHK, k_BTGK, v_BTGK))
    y = torch.zeros_like(q)
    for batch in range(q.shape[0]):
        for head in range(q.shape[2]):
            group = head // (q.shape[2] // k.shape[2])
            for i in range(q.shape[1]):
                scores = [float(q[batch, i, head] @ k[batch, j, group]) / math.sqrt(q.shape[3]) for j in range(i + 1)]
                weights = [math.exp(score - max(scores)) for score in scores]
                for j, weight in enumerate(weights):
                    y[batch, i, head] += weight / sum(weights) * v[batch, j, group]
    return y


def test_the_reference_is_softmax_over_the_past_with_two_query_heads_a_key_head():
    tensors = qkv(2, 5, 4, 2, 6)
    torch.testing.assert_close(reference_attention(*tensors).double(), literal_attention(*tensors), rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 37),
    groups=st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2), (6, 3), (3, 1)]),
    width=st.sampled_from([1, 2, 7, 8, 16]),
)
def test_the_fused_attention_is_the_reference_forwards_and_backwards(batch, length, groups, width):
    fast, slow = qkv(batch, length, *groups, width), qkv(batch, length, *groups, width, dtype=torch.float64)
    with torch.no_grad():
        for exact, tensor in zip(slow, fast, strict=True):
            exact.copy_(tensor)
    y, reference = attention(*fast), reference_attention(*slow)
    torch.testing.assert_close(y.double(), reference, rtol=1e-4, atol=1e-5)
    (y * y.detach()).sum().backward()
    (reference * reference.detach()).sum().backward()
    for tensor, exact in zip(fast, slow, strict=True):
        torch.testing.assert_close(tensor.grad.double(), exact.grad, rtol=1e-3, atol=1e-4)


def test_bfloat16_attention_stays_near_the_reference():
    tensors = [tensor.detach().bfloat16() for tensor in qkv(2, 19, 4, 2, 8)]
    torch.testing.assert_close(
        attention(*tensors).float(), reference_attention(*(t.float() for t in tensors)), rtol=0.05, atol=0.03
    )


def test_a_mask_shows_each_position_its_own_windows_past():
    assert window_mask(bounds_of([[2, 1, 1], [1, 3]])).int().tolist() == [
        [[[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]],
        [[[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]],
    ]


def test_the_reference_takes_each_window_by_itself():
    q, k, v = (t.detach() for t in qkv(2, 6, 4, 2, 8))
    y = reference_attention(q, k, v, bounds_of([[4, 2], [1, 5]], spare=3))
    for row, cut in ((0, slice(0, 4)), (0, slice(4, 6)), (1, slice(0, 1)), (1, slice(1, 6))):
        one = slice(row, row + 1)
        alone = literal_attention(q[one, cut], k[one, cut], v[one, cut])
        torch.testing.assert_close(y[one, cut].double(), alone, rtol=1e-5, atol=1e-6)


@st.composite
def packed_rows(draw):
    """Windows' lengths of 1 to 3 rows of one length."""
    length = draw(st.integers(1, 29))
    cuts = [draw(st.sets(st.integers(1, length))) for _ in range(draw(st.integers(1, 3)))]
    return [[end - begin for begin, end in pairwise(sorted({0, length, *cut}))] for cut in cuts]


@settings(max_examples=25, deadline=None)
@given(packed_rows(), st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3)]), st.sampled_from([1, 8, 12]), st.integers(0, 3))
def test_packed_attention_is_the_reference_forwards_and_backwards(rows, groups, width, spare):
    bounds, shape = bounds_of(rows, spare), (len(rows), sum(rows[0]))
    fast, slow = qkv(*shape, *groups, width), qkv(*shape, *groups, width, dtype=torch.float64)
    with torch.no_grad():
        for exact, tensor in zip(slow, fast, strict=True):
            exact.copy_(tensor)
    y, reference = attention(*fast, bounds), reference_attention(*slow, bounds)
    assert torch.equal(y, attention(*fast, bounds, window_mask(bounds)))
    torch.testing.assert_close(y.double(), reference, rtol=1e-4, atol=1e-5)
    (y * y.detach()).sum().backward()
    (reference * reference.detach()).sum().backward()
    for tensor, exact in zip(fast, slow, strict=True):
        torch.testing.assert_close(tensor.grad.double(), exact.grad, rtol=1e-3, atol=1e-4)


def varlen_by_hand(query, key, value, cuts, longest, causal):
    """What the kernel of CUDA computes, window by window; it refuses what the kernel refuses."""
    assert cuts.dtype == torch.int32 and int(cuts.diff().max()) <= longest and int(cuts[-1]) == len(query)
    assert causal and query.ndim == key.ndim == 3
    parts = [[t[None, begin:end] for t in (query, key, value)] for begin, end in pairwise(cuts.tolist()) if begin < end]
    return torch.cat([reference_attention(*part)[0] for part in parts])


def varlen_of_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert cu_seq_q is cu_seq_k and max_q == max_k and query.shape == key.shape
    return varlen_by_hand(query, key, value, cu_seq_q, max_q, is_causal)


def varlen_without_groups(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    assert cu_seq_q is cu_seq_k and max_q == max_k and query.shape == key.shape
    return varlen_by_hand(query, key, value, cu_seq_q, max_q, window_size == (-1, 0))


def varlen_of_2_13(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False, num_splits=None
):
    assert cu_seq_q is cu_seq_k and max_q == max_k and (query.shape == key.shape or enable_gqa)
    return varlen_by_hand(query, key, value, cu_seq_q, max_q, window_size == (-1, 0))


@pytest.mark.parametrize("release", [varlen_of_2_10, varlen_without_groups, varlen_of_2_13])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_varlen_attention_is_called_as_each_release_has_it(monkeypatch, release, kv_heads):
    monkeypatch.setattr(attention_file, "varlen_attn", release)
    tensors, bounds = qkv(2, 9, 4, kv_heads, 8), bounds_of([[4, 5], [1, 8]], spare=2)
    torch.testing.assert_close(varlen_attention(*tensors, bounds), reference_attention(*tensors, bounds))


def test_this_torchs_varlen_attention_takes_the_call_and_stands_in_one_graph():
    tensors, bounds = [tensor.detach().bfloat16() for tensor in qkv(2, 9, 4, 2, 8)], bounds_of([[4, 5], [1, 8]])
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert varlen_attention(*tensors, bounds).shape == (2, 9, 4, 8)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.code)
        return lambda *inputs: (torch.zeros(2, 9, 4, 8),)

    torch._dynamo.reset()
    torch.compile(varlen_attention, backend=backend, fullgraph=True)(*tensors, bounds)
    assert len(graphs) == 1 and graphs[0].count("torch_attn._varlen_attn(") == 1


def test_varlen_attention_is_for_half_precision_on_cuda():
    assert not fits_varlen(torch.zeros(1, 2, 3, 8, dtype=torch.bfloat16))
    with FakeTensorMode():
        for dtype, width, fits in (
            (torch.bfloat16, 64, True),
            (torch.float16, 256, True),
            (torch.float32, 64, False),
            (torch.bfloat16, 12, False),
            (torch.bfloat16, 264, False),
        ):
            assert fits_varlen(torch.empty(1, 2, 3, width, dtype=dtype, device="cuda")) is fits


@pytest.mark.parametrize("std", [5e-3, 1.0, 1e4])
def test_rms_norm_is_the_formula_with_float32_epsilon(std):
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1)) * std
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 2.0**-23).sqrt()
    torch.testing.assert_close(rms_norm(x).double(), exact, rtol=1e-5, atol=1e-6)


def test_rms_norm_of_bfloat16_keeps_small_embeddings():
    # bfloat16's own epsilon, 2^-7, would leave a row of standard deviation 0.005 at 0.06.
    x = (torch.randn(4, 64, generator=torch.Generator().manual_seed(1)) * 0.005).bfloat16()
    assert rms_norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(rms_norm(x).float().square().mean(-1), torch.ones(4), rtol=0.02, atol=0)


def test_rms_norm_of_zeros_is_zeros():
    assert torch.equal(rms_norm(torch.zeros(2, 4)), torch.zeros(2, 4))


def test_a_cpu_computes_in_float32_and_compiles_nothing():
    machine = capability(torch.device("cpu"))
    assert (machine.activations, machine.products, machine.compiled) == (torch.float32, torch.float32, False)
    with attention_backends(torch.device("cpu")):
        tensors = qkv(1, 3, 2, 2, 4)
        assert torch.equal(attention(*tensors), F.scaled_dot_product_attention(
            *(t.transpose(1, 2) for t in tensors), is_causal=True).transpose(1, 2))  # fmt: skip


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_a_recorded_number_of_threads_is_taken_and_one_is_never_measured(threads):
    threads(1)
    assert settle_threads(torch.device("cpu"), 3) == torch.get_num_threads() == 3
    threads(1)
    assert settle_threads(torch.device("cpu")) == torch.get_num_threads() == 1


def test_measured_threads_are_all_or_one(threads):
    threads(4)
    assert settle_threads(torch.device("cpu")) == torch.get_num_threads() in (1, 4)


HOPPER, LITTLE_BLACKWELL = 232_448, 101_376  # bytes of shared memory that a program may take


@pytest.mark.parametrize(
    ("level", "memory", "package", "triton", "tiles", "words"),
    [
        ((9, 0), HOPPER, True, True, True, None),
        ((10, 0), HOPPER, True, True, True, None),
        ((12, 0), LITTLE_BLACKWELL, True, True, False, "the MLP takes its plain form"),
        ((8, 0), 166_912, True, True, False, "the MLP takes its plain form"),
        ((7, 5), 65_536, True, False, False, "Card is no NVIDIA card from Ampere on: all kernels"),
        ((9, 0), HOPPER, False, False, False, "not the package triton: all kernels"),
    ],
)
def test_what_a_card_lacks_is_known_and_said(monkeypatch, level, memory, package, triton, tiles, words):
    device, properties = torch.device("cuda", 0), SimpleNamespace(shared_memory_per_block_optin=memory)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: level)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(capability_file, "find_spec", lambda name: name if package else None)
    assert (runs_triton(device), copies_tiles(device), capability(device).compiled) == (triton, tiles, package)
    said = plain_forms(device)
    assert said is None if words is None else words in said


def test_a_cpu_runs_no_kernels_and_lacks_nothing():
    device = torch.device("cpu")
    assert not runs_triton(device) and not copies_tiles(device) and plain_forms(device) is None
