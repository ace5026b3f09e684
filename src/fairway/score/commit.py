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
    """ln softmax(z)[ids] in float64 [N, K], and the entropy in nats [N] (or None), a bounded number of rows at a time."""
    rows, parts = max(1, NORMALISE_ELEMENTS // z_NV.shape[1]), []
    for z, ids in zip(z_NV.split(rows), ids_NK.split(rows), strict=True):
        parts.append(_commit(z.double(), ids, entropy))
    logp_NK = torch.cat([logp for logp, _ in parts])
    return logp_NK, torch.cat([h for _, h in parts]) if entropy else None


def fused_commit(z_NV, ids_NK, entropy=False):
    """The same in float32, to be compiled together with the head: no float32 copy of the logits is written to memory.

    It differs from `reference_commit` by rounding: 4e-6 nats at most at logits up to 30, 1e-8 on average.
    """
    return _commit(z_NV.float(), ids_NK, entropy)


def _commit(z_NV, ids_NK, entropy):
    lse_N1 = z_NV.logsumexp(1, keepdim=True)
    logp_NK = z_NV.gather(1, ids_NK) - lse_N1
    if not entropy:
        return logp_NK, None
    # -sum p ln p; a logit of minus infinity has no share in it.
    log_NV = z_NV - lse_N1
    return logp_NK, -(log_NV.exp() * log_NV.clamp(min=-1e30)).sum(1)


class Committer:
    """A model as the scorer calls it. The model's part, `read`, gets inputs alone; which ids are looked up, and the
    normalisation over all V, are the scorer's.

    `read(ids_BT, bounds, linear)` gives (x [B, T, any], project) where project(x [N, any]) are logits [N, V], float.
    `compiled`: one graph for each shape of batch, or with `dynamic` a few for all of them.
    """

    def __init__(self, read, vocab, device, compiled=False, dynamic=False):
        self.vocab, self.device, self.dynamic = vocab, device, compiled and dynamic
        reduce = fused_commit if compiled else reference_commit

        def commit(ids_BT, take_N, ids_NK, bounds, tensors, linear, entropy):
            x, project = read(ids_BT, bounds, linear(tensors))
            _check(x, ids_BT.shape, "one vector for each of [windows, positions]")
            z_NV = project(x.flatten(0, 1)[take_N])
            _check(z_NV, (len(take_N), vocab), "float logits [positions, vocabulary]")
            return reduce(z_NV, ids_NK, entropy)

        self.commit = torch.compile(commit, dynamic=None if dynamic else False) if compiled else commit

    def __call__(self, batch, ids_NK, tensors=(), linear=None, entropy=False):
        """(logp_NK, entropy_N or None) of a Batch: what each slot gives the ids asked for, with its graph if grad is on.

        `linear(tensors)` is how this pass takes products with matrices (an adapter's), by default plainly.
        """
        if self.dynamic:
            # Rounds of documents reach further back each time, and have ever fewer rows: one graph for them all, and more
            # where all rows or the longest windows are there, for slices are then the whole tensors.
            for tensor, dimension in ((batch.ids_BT, 0), (batch.ids_BT, 1), (batch.take_N, 0), (ids_NK, 0)):
                torch._dynamo.maybe_mark_dynamic(tensor, dimension)
        # Beyond its limit of 8 graphs torch would silently run uncompiled.
        with attention_backends(self.device), torch._dynamo.config.patch(recompile_limit=GRAPHS):
            return self.commit(batch.ids_BT, batch.take_N, ids_NK, batch.bounds, tensors, linear or plainly, entropy)


def _check(tensor, shape, wanted):
    good = isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
    if not good or tuple(tensor.shape[: len(shape)]) != tuple(shape):
        found = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise Problem(f"the predictor gave {found}, not {wanted} = {list(shape)}")


def plainly(tensors):
    """No adapter: products with matrices as they are."""
    return plain_linear


def read_model(model):
    """A GPTModule as a Committer's `read`."""

    def read(ids_BT, bounds, linear):
        carry = Carry(ids_BT, model.dtype, linear, bounds)
        return model.trunk(carry), partial(model.project, carry=carry)

    return read


def read_function(predict):
    """A function ids_BT -> logits_BTV as a Committer's `read`: toys, and models of others."""

    def read(ids_BT, bounds, linear):
        return predict(ids_BT), _as_it_is

    return read


def _as_it_is(z_NV):
    return z_NV
