"""What a sweep searches: `path=low..high`, `path=low..high:log` or `path=a|b|c`, checked against the recipe."""

import itertools
import re
import zlib

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState, create_trial

from ..node import paths, walk
from ..problem import Problem

SPAN = re.compile(r"(?P<low>[^|]+?)\.\.(?P<high>[^|:]+)(?P<log>:log)?")
# Of a recipe: what acts after training, or is no part of it. The weights do not show it.
UNSEEN = ("name", "codec", "calibrate", "fit", "evaluate", "adapt", "mix", "cap")
DRAWS = 20  # how often the sampler may come with values that were tried


def read_space(over, check):
    """{path: Optuna's distribution} of the texts in `over`.

    `check(settings)` gives the recipe with some path=value applied, or raises Problem; both ends and each choice go
    through it. Problem for everything that is no space.
    """
    space = {}
    for text in over:
        path, _, what = text.partition("=")
        if path in space:
            raise Problem(f"--over names {path} twice; leave one out")
        refuse_unseen(path, check(()))
        named = naming(text, check)
        span = SPAN.fullmatch(what)
        if span:
            space[path] = read_span(path, span, named)
        elif len(choices := list(dict.fromkeys(filter(None, what.split("|"))))) > 1:
            for choice in choices:
                named((f"{path}={choice}",))
            space[path] = CategoricalDistribution(choices)
        else:
            raise Problem(f"--over {text!r} is no space: give path=low..high, path=low..high:log or path=a|b|c")
    if not space:
        raise Problem("give --over at least one path=space, as in --over train.clip=0.1..1.0")
    return space


def naming(text, check):
    """`check`, whose Problems name the --over and the value that was tried."""

    def named(settings):
        try:
            return check(settings)
        except Problem as problem:
            raise Problem(f"--over {text}: with {' '.join(settings)}: {problem}") from problem

    return named


def refuse_unseen(path, recipe):
    """Problem for a field by which trials cannot differ: they are compared by their trained weights."""
    top = path.split(".")[0]
    if path == "train" or path.startswith("train.budget"):
        raise Problem(f"--over {path}: every trial has the same budget; set it with --steps or --tokens")
    if top in UNSEEN or (top == "quantize" and not recipe.qat):
        raise Problem(f"--over {path}: it leaves the trained weights as they are, and trials are compared by those")


def read_span(path, span, check):
    """The distribution of a range whose ends are numbers; of ints where the field takes them."""
    low, high = (value_at(check((f"{path}={span[end]}",)), path) for end in ("low", "high"))
    for value in (low, high):
        if isinstance(value, bool):
            raise Problem(f"--over {path}={span[0]}: {path} is true or false, no range; give {path}=true|false")
        if not isinstance(value, (int, float)):
            raise Problem(f"--over {path}={span[0]}: {path} takes {value!r}, no number; give choices, as in a|b|c")
    if low >= high or (span["log"] and low <= 0):
        raise Problem(f"--over {path}={span[0]}: the low end must be below the high one, and above 0 with :log")
    kind = IntDistribution if isinstance(low, int) and isinstance(high, int) else FloatDistribution
    return kind(low, high, log=bool(span["log"]))


def value_at(recipe, path):
    """What stands at a path of the recipe."""
    parent, name = paths(recipe)[path]
    return getattr(dict(walk(recipe))[parent], name)


def as_settings(values):
    """Values by path as the texts that --set takes."""
    return tuple(f"{path}={value}" for path, value in values.items())


def new_values(study, space, number, seed):
    """{path: value} of a trial with that number, by Optuna's TPE; None once each point of a finite space was tried.

    The draw depends on the seed, the number and what other trials have told, not on which worker draws.
    """
    tried = [trial.params for trial in study.get_trials(deepcopy=False)]
    blank = create_trial(state=TrialState.RUNNING)
    for attempt in range(DRAWS):
        sampler = TPESampler(seed=zlib.crc32(f"{seed} {number} {attempt}".encode()), constant_liar=True)
        values = {path: sampler.sample_independent(study, blank, path, kind) for path, kind in space.items()}
        if values not in tried:
            return values
    return next((values for values in all_points(space) if values not in tried), None)


def all_points(space):
    """Every point of a finite space; of one with a field of real numbers, none."""
    if any(isinstance(kind, FloatDistribution) for kind in space.values()):
        return
    columns = (kind.choices if isinstance(kind, CategoricalDistribution) else range(kind.low, kind.high + 1)
               for kind in space.values())  # fmt: skip
    for point in itertools.product(*columns):
        yield dict(zip(space, point, strict=True))
