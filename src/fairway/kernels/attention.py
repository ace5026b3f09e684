"""Causal grouped-query attention. Shapes: B batch, T positions, H query heads, G key-value heads, K head width, W windows,
N positions of all rows.

Rows may hold several windows, one after the other: `bounds` (model/context.py) says where, and none sees another.
"""

import inspect
import math
from contextlib import nullcontext
from itertools import pairwise

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn


def reference_attention(q_BTHK, k_BTGK, v_BTGK, bounds=None):
    """Softmax attention written out, in the inputs' dtype: query head h reads key-value head h // (H / G).

    With bounds, one window after the other, as if each were a row of its own.
    """
    if bounds is not None:
        flat = [t.flatten(0, 1).unsqueeze(0) for t in (q_BTHK, k_BTGK, v_BTGK)]
        cuts = [cut for cut in pairwise(bounds.offsets_W.tolist()) if cut[0] < cut[1]]
        parts = [reference_attention(*(t[:, begin:end] for t in flat)) for begin, end in cuts]
        return torch.cat(parts, dim=1).view_as(q_BTHK)
    repeats = q_BTHK.shape[2] // k_BTGK.shape[2]
    q_BHTK = q_BTHK.transpose(1, 2)
    k_BHTK = k_BTGK.repeat_interleave(repeats, dim=2).transpose(1, 2)
    v_BHTK = v_BTGK.repeat_interleave(repeats, dim=2).transpose(1, 2)
    scores_BHTT = q_BHTK @ k_BHTK.mT / math.sqrt(q_BTHK.shape[-1])
    future_TT = torch.ones(q_BTHK.shape[1], k_BTGK.shape[1], dtype=torch.bool, device=q_BTHK.device).triu(1)
    y_BHTK = scores_BHTT.masked_fill(future_TT, -math.inf).softmax(-1) @ v_BHTK
    return y_BHTK.transpose(1, 2)


def attention(q_BTHK, k_BTGK, v_BTGK, bounds=None, mask_B1TT=None):
    """The same through torch's fused kernels; which of them is `attention_backends`' choice.

    With bounds, the kernel for windows of different lengths where `fits_varlen`, else a mask: `mask_B1TT` is what
    `window_mask(bounds)` gives, for callers with many layers; without it, it is built here.
    """
    if bounds is not None and fits_varlen(q_BTHK):
        return varlen_attention(q_BTHK, k_BTGK, v_BTGK, bounds)
    if bounds is not None and mask_B1TT is None:
        mask_B1TT = window_mask(bounds)
    q_BHTK, k_BGTK, v_BGTK = (t.transpose(1, 2) for t in (q_BTHK, k_BTGK, v_BTGK))
    grouped = q_BHTK.shape[1] != k_BGTK.shape[1]
    if grouped and (q_BHTK.device.type == "cpu" or bounds is not None):
        # The CPU's fused kernel and CUDA's one with a mask take equal head counts only; grouped heads would be unfused.
        repeats = q_BHTK.shape[1] // k_BGTK.shape[1]
        k_BGTK, v_BGTK = (t.repeat_interleave(repeats, dim=1) for t in (k_BGTK, v_BGTK))
        grouped = False
    y_BHTK = F.scaled_dot_product_attention(
        q_BHTK, k_BGTK, v_BGTK, attn_mask=mask_B1TT, is_causal=bounds is None, enable_gqa=grouped
    )
    return y_BHTK.transpose(1, 2)


def window_mask(bounds):
    """Which positions see which: bool [B, 1, T, T], True from the first position of one's window to oneself.

    T times as large as the row, so good for short rows; a pass needs it once.
    """
    position_BT1 = bounds.position_BT.unsqueeze(-1)
    place_T = torch.arange(position_BT1.shape[1], device=position_BT1.device)
    back_TT = place_T[:, None] - place_T
    return ((back_TT >= 0) & (back_TT <= position_BT1)).unsqueeze(1)


def fits_varlen(q_BTHK):
    """Whether `varlen_attention` takes queries like these: flash attention wants half precision and heads in eights."""
    width = q_BTHK.shape[-1]
    return q_BTHK.is_cuda and q_BTHK.dtype in (torch.bfloat16, torch.float16) and width % 8 == 0 and width <= 256


def varlen_attention(q_BTHK, k_BTGK, v_BTGK, bounds):
    """Windows of different lengths without a mask, on CUDA: work grows with the windows' lengths, not the row's.

    Windows of length zero at the end of the offsets cost next to nothing and change nothing.
    """
    q_NHK, k_NGK, v_NGK = (t.flatten(0, 1) for t in (q_BTHK, k_BTGK, v_BTGK))
    # Releases differ: torch 2.10 has is_causal and takes equal head counts, later ones have a window and grouped heads.
    options = {"window_size": (-1, 0)} if _varlen_takes("window_size") else {"is_causal": True}
    if q_NHK.shape[1] != k_NGK.shape[1]:
        if _varlen_takes("enable_gqa"):
            options["enable_gqa"] = True
        else:
            repeats = q_NHK.shape[1] // k_NGK.shape[1]
            k_NGK, v_NGK = (t.repeat_interleave(repeats, dim=1) for t in (k_NGK, v_NGK))
    cuts, longest = bounds.offsets_W, bounds.longest
    return varlen_attn(q_NHK, k_NGK, v_NGK, cuts, cuts, longest, longest, **options).view_as(q_BTHK)


@torch.compiler.assume_constant_result
def _varlen_takes(name):
    """Whether this torch's varlen_attn has a parameter of this name; a constant to whoever traces a graph."""
    return name in inspect.signature(varlen_attn).parameters


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
