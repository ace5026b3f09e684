"""What only a CUDA card can show: packed rows by varlen attention, n-gram statistics, compiled passes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from conformance.table import BASE, BOS, randomise
from fairway.kernels.attention import attention, fits_varlen, reference_attention
from fairway.kernels.capability import capability
from fairway.kernels.ngram import ContextCounts, continuations
from fairway.model.context import Bounds
from fairway.model.positions import QKNorm, Rotary
from fairway.model.stream import InputNorm
from fairway.score.adapter import AdaptContext, build_adapter
from fairway.score.commit import Committer, read_model
from fairway.score.lora import DocumentLoRA
from fairway.score.sgd import ScoreFirstSGD
from fairway.score.tilt import TokenTilt
from fairway.score.watched import WatchedPass
from fairway.score.windows import Documents, Evaluation, Sliding
from fairway.train.dist import World

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card, and --gpu")
LENGTH = 128
NODE = replace(BASE, width=64, stream=(InputNorm(),), positions=(QKNorm(), Rotary()), layers=2, sequence=LENGTH)


def packed(lengths, width, spare):
    """Bounds of one row that holds windows of these lengths, with room for `spare` more."""
    position_BT = torch.cat([torch.arange(n) for n in lengths])[None]
    offsets = [sum(lengths[:i]) for i in range(len(lengths))] + [width] * (spare + 1)
    return Bounds(position_BT.cuda(), torch.tensor(offsets, dtype=torch.int32, device="cuda"), max(lengths))


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 3e-2), (torch.float32, 1e-4)])
@pytest.mark.parametrize("lengths", [[1, 2, 3, 250], [256], [100, 28, 128]])
def test_attention_in_packed_rows_is_the_reference_forward_and_backward(dtype, tolerance, lengths):
    bounds = packed(lengths, 256, 7)
    q, k, v = (torch.randn(1, 256, heads, 64, device="cuda", dtype=dtype, requires_grad=True) for heads in (4, 2, 2))
    assert fits_varlen(q) == (dtype is torch.bfloat16)
    y, exact = attention(q, k, v, bounds), reference_attention(q.double(), k.double(), v.double(), bounds)
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=tolerance)
    weight = torch.randn_like(y)
    found, wanted = torch.autograd.grad(y, (q, k, v), weight), torch.autograd.grad(exact, (q, k, v), weight.double())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=3e-2, atol=2 * tolerance)


@pytest.mark.parametrize("length", [1, 5, 12])
def test_statistics_are_those_of_the_cpu(length):
    draw = np.random.default_rng(length)
    tokens = torch.from_numpy(np.concatenate([draw.integers(0, 50, 4000)] * 3 + [draw.integers(0, 3, 4000)])).int()
    rank_N = torch.from_numpy(draw.permutation(len(tokens) - 1))
    for rank in (None, rank_N):
        on_card = None if rank is None else rank.cuda()
        one, other = continuations(tokens.cuda(), length, on_card), continuations(tokens, length, rank)
        assert all(
            torch.equal(getattr(one, name).cpu(), getattr(other, name)) for name in ("best_N", "best_count_N", "count_N")
        )
        one, other = ContextCounts(tokens.cuda(), length, on_card, every=64), ContextCounts(tokens, length, rank, every=64)
        assert torch.equal(one.of_targets().cpu(), other.of_targets())


def nats_on(device, windows, adapt, tokens, dtype=torch.float32):
    torch.compiler.reset()
    device = torch.device(device)
    model = randomise(NODE.build(dtype=dtype), seed=2).to(device)
    # Tame logits: on wild ones the signs of small gradients, which Adam goes by, differ from one rounding to the next.
    for parameter in model.parameters():
        parameter.data.mul_(0.05)
    machine, world, evaluation = capability(device), World(0, 1, device), Evaluation(windows, batch_windows=4)
    adapter = build_adapter(adapt, AdaptContext(model, machine, world, evaluation))
    commit = Committer(read_model(model), NODE.vocab, device, machine.compiled, bool(adapter and adapter.by_round))
    starts = np.flatnonzero(tokens == BOS)
    one = WatchedPass(commit, tokens, evaluation, len(tokens), world, starts, adapter, (TokenTilt(rules=((2, 0.5, 2),)),))
    one.warm_up()
    return one.run()[-1][1].nats_N


@pytest.mark.parametrize(
    "windows, adapt",
    [
        (Sliding(LENGTH, 32), ()),
        (Documents(LENGTH, 32), ()),
        (Sliding(LENGTH, 32), (ScoreFirstSGD(rate=0.05, chunk=512),)),
        (Documents(LENGTH, 32), (DocumentLoRA(rank=4, rate=0.0001, batch=8, context=LENGTH, chunks=((64, 8),), chunk=16),)),
    ],
    ids=["sliding", "documents", "sgd", "lora"],
)
def test_a_compiled_pass_gives_what_the_cpu_gives(windows, adapt):
    draw = np.random.default_rng(1)
    tokens = draw.integers(BOS + 1, NODE.vocab, 3000).astype(np.uint16)
    tokens[[0, 300, 350, 900, 1000, 1040, 2000]] = BOS
    cpu_N, cuda_N = nats_on("cpu", windows, adapt, tokens), nats_on("cuda", windows, adapt, tokens)
    np.testing.assert_allclose(cuda_N, cpu_N, rtol=5e-3, atol=5e-3)
