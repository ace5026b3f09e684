"""What a matrix's inputs weigh: H_CC, the mean of x x^T over the inputs x it saw on training text.

A squared error in the outputs of W is tr(E H E^T) for an error E of W. C columns of a matrix, R rows, M inputs of one pass.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..kernels.attention import attention_backends
from ..problem import Problem
from ..sites import CalibrationSite


@dataclass(frozen=True)
class CalibrationContext:
    """What calibration runs on: `loader` gives this rank's (x_BT, y_BT) by next(), `micro_tokens` in each;
    progress(done, total, text), if any, is told of every batch."""

    loader: object
    world: object
    machine: object
    micro_tokens: int
    progress: object = None


@dataclass(frozen=True)
class Calibration(CalibrationSite):
    """Hessians over `tokens` tokens of all ranks together, the first of a fresh training loader (PR #1514: its 64 batches
    of 98,304, but of rank 0 alone). Rounded to whole micro-batches of all ranks, one at the least."""

    tokens: int = 6_291_456

    def __post_init__(self):
        if self.tokens < 1:
            raise Problem(f"Calibration.tokens is {self.tokens}; take 1 or more, as 6291456")

    def hessians(self, model, names, context):
        """{leaf name: H_CC float32, on the model's device} of the leaves `names`; a collective call. Problem for a leaf that
        no product has."""
        count = max(1, round(self.tokens / (context.micro_tokens * context.world.size)))
        return collect_hessians(model, names, _told_batches(context, count), context.world)


def _told_batches(context, count):
    """`count` batches of ids_BT."""
    for done in range(count):
        yield context.loader.next()[0]
        if context.progress:
            context.progress(done + 1, count, "calibration batches")


@torch.no_grad()
def collect_hessians(model, names, batches, world):
    """{leaf name: H_CC float32} of the matrices `names` over ids_BT batches, each rank its own: the sum of x x^T over all
    that a matrix saw on all ranks, divided by the number of tokens. A matrix used three times a pass counts three inputs.

    Problem for a name that no product had.
    """
    sums, last = dict.fromkeys(sorted(names)), (None, None)  # sorted, as the ranks' calls must pair

    def watched_linear(x, weight, name):
        nonlocal last
        if name in sums:
            # Queries, keys and values take one and the same input: its square is taken once.
            if last[0] is not x:
                last = x, _second_moment(x.flatten(0, -2))
            sums[name] = last[1].clone() if sums[name] is None else sums[name].add_(last[1])
        return F.linear(x, weight)

    tokens = torch.zeros((), dtype=torch.float64, device=world.device)
    with attention_backends(world.device):
        for ids_BT in batches:
            model(ids_BT.to(world.device), linear=watched_linear)
            tokens += ids_BT.numel()
    if unseen := [name for name, sum_CC in sums.items() if sum_CC is None]:
        raise Problem(
            f"{unseen[0]} is looked up and multiplies nothing, so its rule cannot have a Hessian; give it a rule of its own"
            " with rounding=Nearest() and correct=()"
        )
    world.all_reduce_sum(tokens)
    return {name: world.all_reduce_sum(sum_CC).div_(tokens) for name, sum_CC in sums.items()}


def _second_moment(x_MC):
    """x^T x, float32."""
    if x_MC.is_cuda and x_MC.dtype == torch.bfloat16:
        return torch.mm(x_MC.T, x_MC, out_dtype=torch.float32)  # sums in float32 and leaves them so; CUDA only
    x_MC = x_MC.float()
    return x_MC.T @ x_MC


def output_error(error_RC, hessian_CC):
    """tr(E H E^T), the mean squared error that E makes in a matrix's outputs; a number on the device."""
    return ((error_RC @ hessian_CC) * error_RC).sum()
