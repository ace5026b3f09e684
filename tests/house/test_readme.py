"""What the README shows is true of the tree: its commands parse, its numbers are the recipes', its technique works."""

import re
import shlex
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import tyro

from conformance.table import BASE, random_ids
from fairway.cli import Command
from fairway.model.roles import Part, leaf_views
from fairway.recipes.catalogue import RECIPES
from fairway.record.table import AFTER_STAGES, BEFORE_STAGES
from fairway.sites import StreamSite

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
WANTED = (
    "recipes", "plan", "data", "train", "pack", "score", "ablate", "audit", "review", "sweep", "runs", "compare", "report",
    "record", "bench",
)  # fmt: skip
COMMANDS = re.findall(rf"\bfairway ((?:demo|{'|'.join(WANTED)})\b[^`#;&\n]*)", README)


def test_the_readme_shows_every_command():
    assert {command.split()[0] for command in COMMANDS} >= set(WANTED)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_parses(command):
    words = shlex.split(command.replace("...", ""))
    assert tyro.cli(Command, args=words) is not None


def test_the_columns_that_the_readme_sorts_and_filters_by_exist():
    known = {*BEFORE_STAGES, *AFTER_STAGES}
    words = [shlex.split(command) for command in COMMANDS if command.startswith("runs ")]
    named = [after for line in words for flag, after in pairwise(line) if flag in ("--sort", "--where")]
    assert named and {re.split("[=<>]", name)[0] for name in named} <= known


def test_the_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert {"demo", "demo-full", "test", "check"} <= named <= targets


def test_the_recipes_of_the_readme_have_the_parameters_it_says():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", README, re.M))
    counted = {f.__name__: f"{sum(view.numel() for _, view in leaf_views(f().model.build())):,}" for f in RECIPES}
    assert rows == counted


def test_the_technique_of_the_readme_is_the_identity_at_first_and_learns():
    (source,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {"dataclass": dataclass, "StreamSite": StreamSite, "Part": Part, "torch": torch, "__name__": "readme"}
    exec(source, names)
    with_it = replace(BASE, stream=(*BASE.stream, names["ChannelGain"]()))
    ids_BT = random_ids(BASE, 0, 2)
    model = with_it.build(seed=1)
    assert torch.equal(model(ids_BT), BASE.build(seed=1)(ids_BT))
    model.loss(ids_BT, ids_BT).backward()
    assert model.stream[-1].gain_D.grad.abs().sum() > 0
