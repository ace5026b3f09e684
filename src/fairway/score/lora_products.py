"""Low-rank changes to a model's matrix products, one for each row of a batch.

B rows (documents), T positions, N slots of all rows, S stacked uses: how often a product of a kind happens in a pass,
R rank, I inputs and O outputs of a product.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..problem import Problem

# What may be changed: the product whose input is read, and the one whose output is added to, by the end of its name.
# The MLP gets one branch around it, from its normed input to its output.
LORA_TARGETS = {
    "query": ("attn.query", "attn.query"),
    "key": ("attn.key", "attn.key"),
    "value": ("attn.value", "attn.value"),
    "output": ("attn.output", "attn.output"),
    "mlp": ("mlp.up", "mlp.down"),
    "head": ("token.table", "token.table"),
}


@dataclass(frozen=True, eq=False)
class ProductLayout:
    """Where a pass is changed: `shapes` target -> (S, O, I), in the order asked for; `changed` a product's name -> its
    target; `sources` a product whose input is kept -> the product that is changed by it, where they are not the same."""

    shapes: dict
    changed: dict
    sources: dict


@torch.no_grad()
def find_products(model, targets):
    """The ProductLayout of `targets` in a model, seen by running two tokens through it.

    Problem for a target that no product of the model is, and for one whose products differ in shape.
    """
    seen = []

    def record(x, weight, name):
        seen.append((name, *weight.shape))
        return F.linear(x, weight)

    model(torch.zeros(1, 2, dtype=torch.int64, device=next(model.parameters()).device), linear=record)
    shapes, changed, sources = {}, {}, {}
    for target in targets:
        source, changes = (_called(seen, end) for end in LORA_TARGETS[target])
        found = {(out, into) for (_, out, _), (_, _, into) in zip(changes, source, strict=True)}
        if len(found) != 1:
            fault = "that differ in shape" if found else "none"
            raise Problem(f"DocumentLoRA.targets names {target}, of which the model has {fault}; leave it out")
        shapes[target] = (len(changes), *found.pop())
        changed |= {name: target for name, _, _ in changes}
        sources |= {one[0]: other[0] for one, other in zip(source, changes, strict=True) if one[0] != other[0]}
    return ProductLayout(shapes, changed, sources)


def _called(seen, end):
    return [product for product in seen if product[0] == end or product[0].endswith(f".{end}")]


class LowRankProducts:
    """`carry.linear` of one pass: x W^T + scale (x A^T) B^T, each row of the batch with its own A and B.

    `down` and `up` hold, for each target of the layout, A [S, B, R, I] and B [S, B, O, R], or more rows than the pass has:
    row b takes entry b. Uses are taken in the order of the pass. An object serves a single pass.
    """

    def __init__(self, layout, down, up, scale):
        self.layout, self.down, self.up, self.scale = layout, down, up, scale
        self.rows = down[0].shape[1]
        self.opened, self.used, self.kept = {}, {}, {}

    def __call__(self, x, weight, name):
        if x.dim() > 2:
            self.rows = x.shape[0]
        if name in self.layout.sources:
            self.kept[self.layout.sources[name]] = x
        y = F.linear(x, weight)
        if name not in self.layout.changed:
            return y
        return self._changed(self.kept.pop(name, x), y, self.layout.changed[name])

    def _changed(self, x, y, target):
        if target not in self.opened:
            self.opened[target], self.used[target] = self._open(target, x.dtype), 0
        down, up = self.opened[target]
        use = self.used[target]
        self.used[target] = use + 1
        # The head gets the slots of all rows, [N, I].
        x_BTI, y_BTO = x.reshape(self.rows, -1, x.shape[-1]), y.reshape(self.rows, -1, y.shape[-1])
        low_BTR = torch.bmm(x_BTI, down[use].mT)
        return torch.baddbmm(y_BTO, low_BTR, up[use].mT, alpha=self.scale).view_as(y)

    def _open(self, target, dtype):
        """Each use's matrices. One cast for all, and by `unbind` one stacked gradient."""
        at = list(self.layout.shapes).index(target)
        stacks = [self.down[at], self.up[at]]
        if stacks[0].shape[1] != self.rows:
            stacks = [stack[:, : self.rows] for stack in stacks]
        return [stack.to(dtype).unbind(0) for stack in stacks]
