"""What may stand where: every place of a recipe that takes a node takes those of its site and refuses all others."""

import typing
from dataclasses import dataclass, replace

import pytest

from fairway.model.plan import Straight
from fairway.node import Node, override, parse_node, paths, show, walk
from fairway.optim.schedule import DecaySchedule
from fairway.problem import Problem
from fairway.quantize.gptq import GPTQ
from fairway.quantize.lowrank import LowRank
from fairway.quantize.schemes import RowInt
from fairway.recipes.pr162 import pr162
from fairway.sites import AdaptSite, CalibrationSite, MixSite, QATSite, StartSite, TapSite, ValueSite


@dataclass(frozen=True)
class MadeUpValue(ValueSite):
    """#162 has none."""


@dataclass(frozen=True)
class MadeUpTap(TapSite):
    """#162 has none."""


@dataclass(frozen=True)
class MadeUpStart(StartSite):
    """#162 has none."""


@dataclass(frozen=True)
class MadeUpQAT(QATSite):
    """#162 has none."""


@dataclass(frozen=True)
class MadeUpCalibration(CalibrationSite):
    """#162 has none."""


@dataclass(frozen=True)
class MadeUpAdapter(AdaptSite):
    """#162 has none."""


@dataclass(frozen=True)
class MadeUpMixer(MixSite):
    """#162 has none."""


MODEL = replace(pr162().model, values=(MadeUpValue(),), taps=(MadeUpTap(),), start=(MadeUpStart(),))
# Groups with a decay each that no other has, so that its text stands once in the recipe's.
OPTIM = tuple(replace(g, decay=DecaySchedule(((0.0, 1.0), (1.0, 0.1 * n)))) for n, g in enumerate(pr162().optim))
# Likewise rules with roundings and corrections of their own.
QUANTIZE = tuple(
    replace(rule, rounding=GPTQ(damp=0.1 + n), correct=(LowRank(rank=1 + n),)) if isinstance(rule, RowInt) else rule
    for n, rule in enumerate(pr162().quantize)
)
RECIPE = replace(pr162(), model=MODEL, optim=OPTIM, quantize=QUANTIZE, calibrate=(MadeUpCalibration(),), qat=(MadeUpQAT(),))
RECIPE = replace(RECIPE, adapt=(MadeUpAdapter(),), mix=(MadeUpMixer(),))
NODES = {type(node): node for _, node in walk(RECIPE)}


def places(tree):
    """Path -> (the type of node that may stand there, what does, whether in a tuple)."""
    nodes, found = dict(walk(tree)), {}
    for path, (parent, name) in paths(tree).items():
        kind = typing.get_type_hints(type(nodes[parent]))[name]
        several = typing.get_origin(kind) is tuple
        kind = typing.get_args(kind)[0] if several else kind
        if isinstance(kind, type) and issubclass(kind, Node):
            found[path] = kind, getattr(nodes[parent], name), several
    return found


PLACES = places(RECIPE)
MODEL_SITES = [
    "inputs",
    "stream",
    "positions",
    "values",
    "taps",
    "mlp",
    "join",
    "residual",
    "plan",
    "plan.skip",
    "head",
    "start",
]


def test_the_places_are_those_of_the_design_and_each_has_a_site_of_its_own():
    own = {"train.budget", "optim.Muon.momentum"}  # one type each, no family
    corrections = {"quantize.RowInt:3.correct", "quantize.RowInt:4.correct"}  # one type, in every rule
    decays = {f"optim.{group}.decay" for group in ("AdamW:0", "Muon", "AdamW:2")}  # one type, in every group
    sites = {"model", "loader", "train", "train.schedule", "optim", "optim.Muon.orthogonaliser", "average", "quantize",
             "calibrate", "fit", "quantize.RowInt:3.rounding", "quantize.RowInt:4.rounding",
             "qat", "adapt", "mix", "codec", "evaluate", "evaluate.windows",
             *(f"model.{site}" for site in MODEL_SITES)}  # fmt: skip
    assert PLACES.keys() == sites | own | decays | corrections
    assert {PLACES[path][0].__module__ for path in sites} == {"fairway.sites"}
    # The two roundings are of one site.
    assert len({kind for kind, _, _ in PLACES.values()}) == len(sites | own) - 1 + 2


def one_line(refuse):
    with pytest.raises(Problem) as caught:
        refuse()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", PLACES)
def test_a_node_at_a_wrong_site_is_one_line_that_names_place_and_node(path):
    kind, stands, several = PLACES[path]
    strangers = [node for node in NODES.values() if not isinstance(node, kind)]
    assert len(strangers) > 20
    name, text = path.rpartition(".")[2], repr(RECIPE)
    assert text.count(f"{name}={stands!r}") == 1
    for node in strangers:
        wrong = f"({node!r},)" if several else repr(node)
        says = one_line(lambda wrong=wrong: override(RECIPE, [f"{path}={wrong}"]))
        assert says.startswith(f"{path} takes ") and kind.__name__ in says and repr(node) in says
        says = one_line(lambda wrong=wrong: parse_node(text.replace(f"{name}={stands!r}", f"{name}={wrong}")))
        assert f".{name} takes " in says and kind.__name__ in says and repr(node) in says


@pytest.mark.parametrize("path", PLACES)
def test_a_place_takes_what_stands_there_but_no_plain_value_and_no_tuple_for_a_node(path):
    _, stands, several = PLACES[path]
    assert override(RECIPE, [f"{path}={stands!r}"]) == RECIPE
    for wrong in ("7", "none", "words", repr(stands[0]) if several else repr((stands,)), "(7,)"):
        assert path in one_line(lambda wrong=wrong: override(RECIPE, [f"{path}={wrong}"]))


def test_a_recipe_with_techniques_from_outside_the_package_reads_back():
    assert parse_node(repr(RECIPE)) == parse_node(show(RECIPE)) == RECIPE
    moved = override(RECIPE, ["model.values=()", "model.taps=(MadeUpTap(), MadeUpTap())", "model.plan=Straight()"])
    assert (moved.model.values, moved.model.taps, moved.model.plan) == ((), (MadeUpTap(),) * 2, Straight())
