"""Every recipe that a command can be asked for by its function's name."""

from .demo import demo
from .pr162 import pr162

RECIPES = (demo, pr162)
