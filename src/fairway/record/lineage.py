"""Where a run's recipe comes from: its techniques with their sources, the recipes it amends, and the recipe as a tree."""

import dataclasses
import inspect
import re

from ..node import Node, children, differences
from ..recipe import Recipe
from ..recipes.catalogue import RECIPES, parent_of
from ..sites import EvaluationSite, ModelSite, TrainingSite

# What only holds techniques together. Their sites are fields of these.
HOLDERS = (Recipe, ModelSite, TrainingSite, EvaluationSite)
# A pull request of the contest, a preprint, an author with a year: as docstrings name their sources.
SOURCE_NAMES = re.compile(
    r"(?:PR )?#(?P<pull>\d+)\b|arXiv:? ?(?P<preprint>\d{4}\.\d{4,5})|(?P<paper>[A-Z][\w-]+ et al\.,? \d{4})"
)
SENTENCE_END = re.compile(r"(?<=\S[.!?])\s+(?=[^a-z\d])")


def first_sentence(text):
    """The first sentence of a text's first paragraph, on one line."""
    paragraph = " ".join(inspect.cleandoc(text).split("\n\n")[0].split())
    return SENTENCE_END.split(paragraph)[0]


def named_sources(text):
    """The sources that a text names, in order, each once: "PR #162", "arXiv 2405.16712", "Bengio et al. 2013"."""
    found = []
    for match in SOURCE_NAMES.finditer(" ".join(text.split())):
        if match["paper"]:
            found.append(match["paper"])
        else:
            found.append(f"PR #{match['pull']}" if match["pull"] else f"arXiv {match['preprint']}")
    return list(dict.fromkeys(found))


def credits_of(recipe):
    """[{"name", "site", "about", "credits"}] of the recipe's techniques, each type once, where it stands first.

    A technique is a node at a site or in a tuple, other than what only holds others together. `site` is the path of the
    field it stands in, `about` the first sentence of its docstring, `credits` the sources that this sentence names: later
    ones name others for contrast.
    """
    found = {}
    for site, node, alone in placed_nodes(recipe):
        kind = type(node)
        if kind in found or isinstance(node, HOLDERS) or (alone and not stands_at_site(kind)):
            continue
        text = own_docstring(kind)
        found[kind] = {"name": kind.__name__, "site": site, "about": first_sentence(text)}
        found[kind]["credits"] = named_sources(first_sentence(text))
    return list(found.values())


def placed_nodes(node, path=""):
    """Yields (path of the field it stands in, node, whether it stands there alone) of all nodes below, parents first."""
    for step, child, field, index in children(node):
        yield f"{path}.{field}" if path else field, child, index is None
        yield from placed_nodes(child, f"{path}.{step}" if path else step)


def stands_at_site(kind):
    """Whether a node type says where in a recipe it may stand: one of its bases is a site, which is no dataclass itself
    (see sites.py)."""
    return any(issubclass(base, Node) and "__dataclass_params__" not in base.__dict__ for base in kind.__mro__)


def own_docstring(kind):
    """What a node type says of itself; "" where the text is only the one that dataclasses make up."""
    text = kind.__doc__ or ""
    return "" if text.startswith(f"{kind.__name__}(") else text


def ancestors_of(name):
    """[{"name", "about", "source", "credits"}] of the recipe function of that name and of those it amends, nearest first.

    `about` is the first line of the function's docstring, `source` that of its module's, `credits` what the latter names.
    """
    functions, found = {function.__name__: function for function in RECIPES}, []
    while name in functions:
        function = functions[name]
        source = (inspect.getmodule(function).__doc__ or "").strip().split("\n")[0]
        about = (function.__doc__ or "").strip().split("\n")[0]
        found.append({"name": name, "about": about, "source": source, "credits": named_sources(source)})
        name = parent_of(name)
    return found


def lineage_of(one):
    """{"recipe", "parent", "ancestors", "changes"} of a Measured: see `ancestors_of`; changes are [{"path", "from", "to"}]
    against the recipe of its name, which is the parent.

    What run.json does not say, as in runs of earlier versions, is worked out from recipe.py; Problem where that is broken.
    """
    name, run = one.run.get("recipe"), one.run
    if "parent" in run and "changes" in run:
        parent, changes = run["parent"], run["changes"]
    else:
        parent, changes = _worked_out(one.recipe())
        name = name or one.recipe().name
    return {
        "recipe": name,
        "parent": parent,
        "ancestors": ancestors_of(parent),
        "changes": [{"path": path, "from": before, "to": after} for path, (before, after) in changes.items()],
    }


def _worked_out(recipe):
    functions = {function.__name__: function for function in RECIPES}
    if recipe.name not in functions:
        return None, {}
    changes = differences(functions[recipe.name](), recipe)
    return recipe.name, {path: (repr(before), repr(after)) for path, (before, after) in changes.items()}


def recipe_tree(node, place=""):
    """{"label", "fields", "children"} of a node: the label is its place and type, as in "stream: SmearGate"; fields are
    [[name, value as in a recipe]] of what are no nodes; children are such trees, in the order of the fields."""
    below = list(children(node))
    inner = {field for _, _, field, _ in below}
    own = [field.name for field in dataclasses.fields(node) if field.name not in inner]
    return {
        "label": f"{place}: {type(node).__name__}" if place else type(node).__name__,
        "fields": [[name, repr(getattr(node, name))] for name in own],
        "children": [recipe_tree(child, field) for _, child, field, _ in below],
    }
