"""One file per family: functions that return a `Recipe`."""

from .demo import demo
from .pr162 import pr162

RECIPES = (demo, pr162)
