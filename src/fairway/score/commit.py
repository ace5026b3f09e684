"""What a model commits to before anything is looked up: log-probabilities over the whole vocabulary, normalised here.

B rows, T positions, D width, N slots of a batch, K ids asked for at each, V vocabulary.
"""

from functools import partial

import torch

from ..kernels.attention import attention_backends
from ..model.context import Carry, plain_linear
from ..problem import Problem

GRAPHS = 64  # a Committer may be compiled to: shapes of batches, with and without adapters
NORMALISE_ELEMENTS = 1 << 24  # float64 logits held at once while normalising (128 MiB)


def reference_commit(z_NV, ids_NK, entropy=False):
    """ln softmax(z)[ids] in float64 [N, K], and with `entropy` that in nats as one more column, a bounded number of rows at
    a time."""
    rows = max(1, NORMALISE_ELEMENTS // z_NV.shape[1])
    pairs = zip(z_NV.split(rows), ids_NK.split(rows), strict=True)
    return torch.cat([_commit(z_PV.double(), ids_PK, entropy) for z_PV, ids_PK in pairs])


def fused_commit(z_NV, ids_NK, entropy=False):
    """The same in float32, to be compiled together with the head: no float32 copy of the logits is written to memory.

    It differs from `reference_commit` by rounding: 4e-6 nats at most at logits up to 30, 1e-8 on average.
    """
    return _commit(z_NV.float(), ids_NK, entropy)


def _commit(z_NV, ids_NK, entropy):
    lse_N1 = z_NV.logsumexp(1, keepdim=True)
    logp_NK = z_NV.gather(1, ids_NK) - lse_N1
    if not entropy:
        return logp_NK
    # -sum p ln p; a logit of minus infinity has no share in it.
    log_NV = z_NV - lse_N1
    return torch.cat([logp_NK, -(log_NV.exp() * log_NV.clamp(min=-1e30)).sum(1, keepdim=True)], dim=1)


class Committer:
    """A model as the scorer calls it. The model's part, `read`, gets inputs alone; which ids are looked up, and the
    normalisation over all V, are the scorer's.

    `read(ids_BT, bounds, linear)` gives (x [B, T, any], project) where project(x [N, any]) are logits [N, V], float.
    `compiled`: one graph for each shape of batch, or with `dynamic` a few for all of them.
    """

    def __init__(self, read, vocab, device, compiled=False, dynamic=False):
        self.vocab, self.device = vocab, device
        reduce = fused_commit if compiled else reference_commit

        def commit(ids_BT, take_N, ids_NK, bounds, tensors, linear, entropy):
            x, project = read(ids_BT, bounds, linear(tensors))
            return reduce(project(x.flatten(0, 1)[take_N]), ids_NK, entropy)

        self.commit = torch.compile(commit, dynamic=None if dynamic else False) if compiled else commit

    def __call__(self, batch, ids_NK, entropy=False, tensors=(), linear=None):
        """log-probabilities [N, K] of a Batch: what each slot gives the ids asked for, with its graph if grad is on; with
        `entropy` one more column, that of the slot's distribution in nats.

        `linear(tensors)` is how this pass takes products with matrices (an adapter's), by default plainly.
        """
        # Beyond its limit of 8 graphs torch would silently run uncompiled.
        with attention_backends(self.device), torch._dynamo.config.patch(recompile_limit=GRAPHS):
            return self.commit(batch.ids_BT, batch.take_N, ids_NK, batch.bounds, tensors, linear or plainly, entropy)


def plainly(tensors):
    """No adapter: products with matrices as they are."""
    return plain_linear


def read_model(model):
    """A GPTModule as a Committer's `read`."""

    def read(ids_BT, bounds, linear):
        carry = Carry(ids_BT, model.dtype, linear, bounds)
        return model.trunk(carry), partial(model.project, carry=carry)

    return read


def read_function(predict, vocab):
    """A function ids_BT -> logits_BTV as a Committer's `read`: toys, and models of others. Problem for what it may get
    wrong: the shape or the kind of its logits."""

    def read(ids_BT, bounds, linear):
        z_BTV = predict(ids_BT)
        _check(z_BTV, ids_BT.shape, "one vector for each of [windows, positions]")
        _check(z_BTV[0, :1], (1, vocab), "float logits [positions, vocabulary]")
        return z_BTV, _as_it_is

    return read


def _as_it_is(z_NV):
    return z_NV


def _check(tensor, shape, wanted):
    good = isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.shape[: len(shape)] == shape
    if not good:
        raise Problem(f"the predictor gave {_kind_of(tensor)}, not {wanted} = {list(shape)}")


def _kind_of(thing):
    return f"{thing.dtype} {list(thing.shape)}" if isinstance(thing, torch.Tensor) else type(thing).__name__
