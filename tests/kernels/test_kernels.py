import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fairway.kernels.attention import attention, attention_backends, reference_attention
from fairway.kernels.capability import capability, settle_threads
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
