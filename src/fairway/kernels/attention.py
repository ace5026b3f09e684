"""Causal grouped-query attention. Shapes: B batch, T positions, H query heads, G key-value heads, K head width."""

import math
from contextlib import nullcontext

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def reference_attention(q_BTHK, k_BTGK, v_BTGK):
    """Softmax attention written out, in the inputs' dtype: query head h reads key-value head h // (H / G)."""
    repeats = q_BTHK.shape[2] // k_BTGK.shape[2]
    q_BHTK = q_BTHK.transpose(1, 2)
    k_BHTK = k_BTGK.repeat_interleave(repeats, dim=2).transpose(1, 2)
    v_BHTK = v_BTGK.repeat_interleave(repeats, dim=2).transpose(1, 2)
    scores_BHTT = q_BHTK @ k_BHTK.mT / math.sqrt(q_BTHK.shape[-1])
    future_TT = torch.ones(q_BTHK.shape[1], k_BTGK.shape[1], dtype=torch.bool, device=q_BTHK.device).triu(1)
    y_BHTK = scores_BHTT.masked_fill(future_TT, -math.inf).softmax(-1) @ v_BHTK
    return y_BHTK.transpose(1, 2)


def attention(q_BTHK, k_BTGK, v_BTGK):
    """The same through torch's fused kernels; which of them is `attention_backends`' choice."""
    q_BHTK, k_BGTK, v_BGTK = (t.transpose(1, 2) for t in (q_BTHK, k_BTGK, v_BTGK))
    grouped = q_BHTK.shape[1] != k_BGTK.shape[1]
    if grouped and q_BHTK.device.type == "cpu":
        # The CPU's fused kernel takes equal head counts only; grouped heads would fall to the unfused path.
        repeats = q_BHTK.shape[1] // k_BGTK.shape[1]
        k_BGTK, v_BGTK = (t.repeat_interleave(repeats, dim=1) for t in (k_BGTK, v_BGTK))
        grouped = False
    y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTK, is_causal=True, enable_gqa=grouped)
    return y_BHTK.transpose(1, 2)


def attention_backends(device):
    """Context in which attention runs: on CUDA cuDNN first (the fastest on Hopper), then flash, then the rest."""
    if device.type != "cuda":
        return nullcontext()
    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    return sdpa_kernel(order, set_priority=True)
