"""Every recipe that a command can be asked for by its function's name."""

from ..codec.general import Brotli, Lzma
from ..codec.smallest import Smallest
from ..codec.zstd import Zstd
from ..quantize.lowrank import LowRank
from ..quantize.trellis import Trellis
from ..score.averaged_sgd import AveragedSGD
from ..score.lora import DocumentLoRA
from .demo import demo
from .pr162 import pr162
from .pr864 import pr864
from .pr1205 import pr1205
from .pr1514 import pr1514
from .pr1523 import pr1523

RECIPES = (demo, pr162, pr864, pr1205, pr1514, pr1523)

# Nodes that stand in no recipe here, but may in somebody's, or in a setting.
BESIDE = (AveragedSGD, Brotli, DocumentLoRA, LowRank, Lzma, Smallest, Trellis, Zstd)


def parent_of(recipe_name):
    """The name of the recipe that the function of that name calls and amends, or None."""
    names = {function.__name__: function for function in RECIPES}
    function = names.get(recipe_name)
    called = function.__code__.co_names if function else ()
    return next((name for name in called if name in names), None)
