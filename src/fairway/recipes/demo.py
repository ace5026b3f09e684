"""The demo: #162's techniques at a size that two CPU cores train in two minutes."""

from dataclasses import replace

from ..data.loaders import SequentialShards, ShuffledWindows
from ..node import amend, swap
from ..optim.average import SWA
from ..optim.muon import Muon
from ..optim.schedule import Budget, Ramp, WarmDownFraction, WarmDownSteps
from ..quantize.gptq import GPTQ
from ..quantize.hessian import Calibration
from ..quantize.schemes import KeepFloat16, RowInt
from ..recipe import Recipe
from ..score.windows import Evaluation, Sliding
from .pr162 import pr162


def demo() -> Recipe:
    """2,095,513 parameters; ends after 240 steps, or 150 seconds on a slower machine."""
    recipe = pr162()
    recipe = amend(recipe, type(recipe.model), width=160, layers=6, heads=4, kv_heads=2, sequence=256)
    recipe = swap(recipe, SequentialShards, ShuffledWindows())
    recipe = swap(recipe, WarmDownSteps, WarmDownFraction(0.6))
    recipe = amend(recipe, Muon, momentum=Ramp(0.85, 0.95, 100))
    recipe = amend(recipe, SWA, below=0.15, every=10)
    return replace(
        recipe,
        name="demo",
        # #162's rule for small tensors would keep all matrices of this size in float16.
        quantize=(
            KeepFloat16(role="scalar"),
            KeepFloat16(role="embedding"),
            RowInt(role="matrix", bits=6, rounding=GPTQ()),
            RowInt(bits=8),
        ),
        calibrate=(Calibration(tokens=65_536),),
        fit=(),
        train=replace(recipe.train, batch_tokens=4096, micro_tokens=4096, budget=Budget(240, 150.0)),
        evaluate=Evaluation(Sliding(length=256, stride=128)),
    )
