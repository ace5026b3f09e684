"""down leaky(up x)^2, of which backward keeps one tensor beside x and the matrices.

p = leaky(c)^2 is never negative, and the slope of the square is 2 sqrt(p) for c > 0, else -2 |slope| sqrt(p): backward needs
p and the sign of c. So what is kept is p in bfloat16, whose lowest bit says c > 0 (odd) or not (even). Values are rounded
once, from the float32 sum of the product, by at most one unit in the last place and without a bias: odd ones are the middle
of what is cut off, even ones the nearest. `down` is multiplied with p as it is kept.

D width, M hidden units, E width of the output; N rows, B batch, T positions.
"""

import torch
from torch.nn import functional as F

from .capability import copies_tiles, multiprocessors
from .launch import triton_kernel
from .mlp_triton import mlp_back_kernel, mlp_up_kernel

TILE_ROWS, TILE_UNITS, TILE_DEPTH = 128, 128, 64
TILE_WARPS, TILE_STAGES = 4, 3


def leaky_squared_mlp(x, up_MD, down_EM, slope):
    """x [..., D] -> [..., E]: down (leaky(up x))^2, with leaky(c) = c above zero, slope c below; slope a plain number.

    Fast for bfloat16 on CUDA cards from Hopper on, where D and E are multiples of 64 and M of 128; no double backward.
    """
    if fits_mlp_tiles(x, up_MD, down_EM):
        return LeakySquaredMLP.apply(x, up_MD, down_EM, slope)
    return reference_leaky_squared_mlp(x, up_MD, down_EM, slope)


def fits_mlp_tiles(x, up_MD, down_EM):
    """Whether the fast version takes these tensors."""
    half = all(tensor.dtype == torch.bfloat16 for tensor in (x, up_MD, down_EM))
    (units, width), out = up_MD.shape, down_EM.shape[0]
    whole = width % TILE_DEPTH == 0 and out % TILE_DEPTH == 0 and units % TILE_UNITS == 0 and x.numel() > 0
    return half and whole and copies_tiles(x.device)


def reference_leaky_squared_mlp(x, up_MD, down_EM, slope):
    """`leaky_squared_mlp` in plain torch, any device and dtype."""
    hidden = F.linear(x, up_MD)
    hidden = F.leaky_relu(hidden, slope) if slope else F.relu(hidden)
    return F.linear(hidden.square(), down_EM)


class LeakySquaredMLP(torch.autograd.Function):
    """The fast version. Two of the six products carry the activation, the others are torch's."""

    @staticmethod
    def forward(ctx, x, up_MD, down_EM, slope):
        x_ND = x.reshape(-1, x.shape[-1])
        p_NM = mlp_up(x_ND, up_MD, slope)
        ctx.slope = slope
        ctx.save_for_backward(x, up_MD, down_EM, p_NM)
        return torch.mm(p_NM, down_EM.t()).view(*x.shape[:-1], down_EM.shape[0])

    @staticmethod
    def backward(ctx, go):
        x, up_MD, down_EM, p_NM = ctx.saved_tensors
        x_ND, go_NE = x.reshape(-1, x.shape[-1]), go.reshape(-1, go.shape[-1])
        dc_NM = mlp_back(go_NE, down_EM, p_NM, ctx.slope)
        dx = torch.mm(dc_NM, up_MD).view(x.shape)
        return dx, torch.mm(dc_NM.t(), x_ND), torch.mm(go_NE.t(), p_NM), None


@torch.library.custom_op("fairway::mlp_up", mutates_args=(), schema="(Tensor x, Tensor up, float slope) -> Tensor")
def mlp_up(x_ND, up_MD, slope):
    """p_NM = leaky(x up^T)^2 as backward wants it kept, bfloat16."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    x_ND, up_MD = x_ND.contiguous(), up_MD.contiguous()
    (rows, width), units = x_ND.shape, up_MD.shape[0]
    p_NM = torch.empty(rows, units, dtype=x_ND.dtype, device=x_ND.device)
    programs = 2 * multiprocessors(x_ND.device)
    triton_kernel(mlp_up_kernel)[(programs,)](
        TensorDescriptor.from_tensor(x_ND, [TILE_ROWS, TILE_DEPTH]),
        TensorDescriptor.from_tensor(up_MD, [TILE_UNITS, TILE_DEPTH]),
        TensorDescriptor.from_tensor(p_NM.view(torch.int32), [TILE_ROWS, TILE_UNITS // 4]),
        rows, (1 + abs(slope)) / 2, (1 - abs(slope)) / 2, units, width,
        TILE_ROWS, TILE_UNITS, TILE_DEPTH, programs, num_warps=TILE_WARPS, num_stages=TILE_STAGES,
    )  # fmt: skip
    return p_NM


@mlp_up.register_fake
def mlp_up_shape(x_ND, up_MD, slope):
    """Shape and dtype of what `mlp_up` gives."""
    return x_ND.new_empty(x_ND.shape[0], up_MD.shape[0])


@torch.library.custom_op(
    "fairway::mlp_back", mutates_args=(), schema="(Tensor go, Tensor down, Tensor p, float slope) -> Tensor"
)
def mlp_back(go_NE, down_EM, p_NM, slope):
    """The gradient before the activation, dc_NM = (go down) d leaky(c)^2 / dc, from what `mlp_up` kept; bfloat16."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    go_NE, down_EM, p_NM = go_NE.contiguous(), down_EM.contiguous(), p_NM.contiguous()
    (rows, width), units = go_NE.shape, down_EM.shape[1]
    dc_NM = torch.empty_like(p_NM)
    programs = -(-rows // TILE_ROWS) * (units // TILE_UNITS)
    triton_kernel(mlp_back_kernel)[(programs,)](
        TensorDescriptor.from_tensor(go_NE, [TILE_ROWS, TILE_DEPTH]),
        TensorDescriptor.from_tensor(down_EM, [TILE_DEPTH, TILE_UNITS]),
        TensorDescriptor.from_tensor(p_NM, [TILE_ROWS, TILE_UNITS]),
        TensorDescriptor.from_tensor(dc_NM, [TILE_ROWS, TILE_UNITS]),
        -2.0 * abs(slope), units, width, TILE_ROWS, TILE_UNITS, TILE_DEPTH, num_warps=TILE_WARPS, num_stages=TILE_STAGES,
    )  # fmt: skip
    return dc_NM


@mlp_back.register_fake
def mlp_back_shape(go_NE, down_EM, p_NM, slope):
    """Shape and dtype of what `mlp_back` gives."""
    return torch.empty_like(p_NM)
