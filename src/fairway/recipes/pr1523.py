"""PR #1523: #1514 with earlier recurrence, a two-lane decoder, and its own rates and decays (1.0778 bpb on FineWeb).

Mended against the public script, beside what #1514 lists: gradients are clipped after they are averaged (there each rank
clipped its own); momentum is float32 and does not survive the warm-up; small gradients travel in one all-reduce, not 48.
The eval-time hash embedding leaves the stream in its own precision (there it turned it to float32). Its fused MLP belongs
to the kernels and is not here yet.
"""

from dataclasses import replace

from ..model.join import Parallel, TwoLane
from ..model.plan import Loop
from ..model.stream import HashEmbedding
from ..node import amend, swap
from ..optim.muon import Muon
from ..recipe import Recipe
from ..score.sgd import ScoreFirstSGD
from .pr1514 import pr1514


def pr1523() -> Recipe:
    """The submission: 35,944,537 parameters, 786,432 tokens a step, 587 of 600 s; scored with SGD and a hash embedding."""
    recipe = swap(pr1514(), Parallel, TwoLane(first=7, merge=0.5))
    recipe = amend(recipe, Loop, starts_at=0.35)
    recipe = amend(recipe, Muon, rate=0.022, weight_decay=0.095)
    tables, *others = recipe.optim
    return replace(
        recipe,
        name="pr1523",
        optim=(replace(tables, weight_decay=0.095), *others),
        adapt=(ScoreFirstSGD(rate=0.01, fresh=(HashEmbedding(buckets=16_384),)),),
        mix=(),
    )
