"""Matrices as a pass multiplies with them: banks joined row below row, times a gain of each row, rounded once.

L layers, R rows, C columns.
"""

import torch


def reference_fold(banks_LRC, dtype, gain_LR=None):
    """diag(gain) of the banks [L, R_i, C] one below the other, [L, sum of R_i, C], in `dtype`; gradients by autograd."""
    whole_LRC = torch.cat(banks_LRC, dim=1) if len(banks_LRC) > 1 else banks_LRC[0]
    return (whole_LRC if gain_LR is None else whole_LRC * gain_LR.unsqueeze(-1)).to(dtype)


def fold(banks_LRC, dtype, gain_LR=None):
    """The same. Where it rounds, the result is one tensor in memory: left to itself, torch.compile casts slice by slice,
    66 launches a pass of 11 layers."""
    if banks_LRC[0].dtype == dtype:
        return reference_fold(banks_LRC, dtype, gain_LR)
    return RoundedFold.apply(dtype, gain_LR, *banks_LRC)


class RoundedFold(torch.autograd.Function):
    """Gradients in the banks' dtype; that of the gain is summed in it over the columns."""

    @staticmethod
    def forward(ctx, dtype, gain_LR, *banks_LRC):
        ctx.rows = [bank.shape[1] for bank in banks_LRC]
        ctx.gained = gain_LR is not None
        ctx.save_for_backward(*((gain_LR, *banks_LRC) if ctx.gained else ()))
        return fold_rows(list(banks_LRC), gain_LR, dtype)

    @staticmethod
    def backward(ctx, grad_LRC):
        grads = grad_LRC.float().split(ctx.rows, dim=1)
        if not ctx.gained:
            return None, None, *grads
        gain_LR, *banks = ctx.saved_tensors
        gains = gain_LR.split(ctx.rows, dim=1)
        d_gain_LR = torch.cat([(grad * bank).sum(-1) for grad, bank in zip(grads, banks, strict=True)], dim=1)
        return None, d_gain_LR, *(grad * gain.unsqueeze(-1) for grad, gain in zip(grads, gains, strict=True))


@torch.library.custom_op(
    "fairway::fold_rows", mutates_args=(), schema="(Tensor[] banks, Tensor? gain, ScalarType dtype) -> Tensor"
)
def fold_rows(banks, gain, dtype):
    """What `reference_fold` gives, written once and without what lies between."""
    parts = [bank.shape[1] for bank in banks]
    whole_LRC = banks[0].new_empty(banks[0].shape[0], sum(parts), banks[0].shape[2], dtype=dtype)
    gains = [None] * len(banks) if gain is None else gain.split(parts, dim=1)
    for part_LRC, bank_LRC, gain_LR in zip(whole_LRC.split(parts, dim=1), banks, gains, strict=True):
        if gain_LR is None:
            part_LRC.copy_(bank_LRC)
        else:
            torch.mul(bank_LRC, gain_LR.unsqueeze(-1), out=part_LRC)
    return whole_LRC


@fold_rows.register_fake
def fold_rows_shape(banks, gain, dtype):
    """Shape and dtype of what `fold_rows` gives."""
    rows = sum(bank.shape[1] for bank in banks)
    return banks[0].new_empty(banks[0].shape[0], rows, banks[0].shape[2], dtype=dtype)
