"""How many floating-point operations a token takes: seen by running the model, whatever techniques it holds."""

from collections import Counter

import torch
from torch.nn import functional as F

from ..problem import Problem

TRIAL_TOKENS = 2


def products_of(node, model, phase=-1):
    """Canonical name -> weights that a token is multiplied with in one forward pass of a plan's phase, visits added up.

    Runs two tokens through `model`, built from the ModelSite `node`. Problem when it does not run, or gives something else
    than logits.
    """
    device = next(model.parameters()).device
    seen, ids_BT = Counter(), torch.arange(min(TRIAL_TOKENS, node.sequence), device=device)[None] % node.vocab

    def record(x, weight, name):
        seen[name] += weight.numel() * (x.numel() // x.shape[-1]) // ids_BT.numel()
        return F.linear(x, weight)

    try:
        with torch.no_grad():
            z_BTV = model(ids_BT, phase, linear=record)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise Problem(f"the model does not run ({type(error).__name__}: {str(error).splitlines()[0]})") from error
    if z_BTV.shape[-1] != node.vocab:
        raise Problem(f"the head gives {z_BTV.shape[-1]} numbers a token, not a logit for each of {node.vocab} pieces")
    return seen


def attention_flops(node, order):
    """FLOPs a token of q k^T and of the sum over values, forward and backward: 12 x average keys x H K a visit of a block.

    `node` is the ModelSite: position t of a whole window attends to t + 1 keys, so (T + 1) / 2 on average.
    """
    return 6 * (node.sequence + 1) * node.width * (len(order.encoder) + len(order.decoder))


def forward_flops(node, model):
    """FLOPs a position of a whole window takes in one forward pass as scoring runs it."""
    return 2 * sum(products_of(node, model).values()) + attention_flops(node, model.orders[-1]) // 3
