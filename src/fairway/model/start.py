"""Site `start`: changes initial values once all are drawn. D width, H query heads, G key-value heads, K head width."""

from dataclasses import dataclass

import torch

from ..sites import StartSite


@dataclass(frozen=True)
class MimeticOutput(StartSite):
    """Output matrices that undo the values they get: head h's columns of O become -strength (its rows of V)^T.

    So O_h V_g = -strength V_g^T V_g, minus a projection (g = h // (H / G); V starts with orthonormal rows). The public
    script of PR #1205 wrote the blocks of V into the rows of O instead, untransposed: O V is then near zero on the
    diagonal (cosine with -I 0.005 instead of 0.707), a small random output matrix. This is what was meant.
    """

    strength: float = 0.05

    def build(self, context):
        size, group = context.head_width, context.heads // context.kv_heads

        def start(views):
            with torch.no_grad():
                for layer in range(context.layers):
                    output_DD = views[f"blocks.{layer}.attn.output"]
                    value_GKD = views[f"blocks.{layer}.attn.value"].unflatten(0, (-1, size))
                    for head in range(context.heads):
                        output_DD[:, size * head : size * (head + 1)] = -self.strength * value_GKD[head // group].T

        return start
