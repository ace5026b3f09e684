"""When a figure that people print is one that a log shows.

A printed figure agrees with a measured one when they are less than one unit of its last digit apart: rounded either way.
"""

import re
from itertools import combinations
from statistics import mean

from .logs import Printed, distinct_stages, eval_seconds

CODE_KEYS = ("bytes_code", "code_bytes")


def agrees(claimed, measured, unit=0.0):
    """Whether a claimed figure is the measured one, rounded either way to the digits of the coarser of the two.

    `unit`: the last digit of what was measured. Measures of less than three decimals prove nothing of more digits.
    """
    unit = max(unit, measured.unit if isinstance(measured, Printed) else 0.0)
    step = max(claimed.unit, min(unit, 0.001))
    return abs(float(claimed) - float(measured)) < step * 0.999 + abs(float(measured)) * 1e-12


def seed_logs(logs, claims):
    """The logs that a submission stands on: one a seed, those of the seeds that it names where it names several."""
    chosen = {}
    for log in logs:
        if log.headline is not None:
            key = log.name if log.seed is None else log.seed
            rank = (re.search(rf"(?<!\d){log.seed}(?!\d)", log.name) is not None, log.train_seconds is not None)
            if key not in chosen or rank > chosen[key][0]:
                chosen[key] = rank, log
    named = [log for key, (_, log) in chosen.items() if key in claims.seeds]
    return named if len(named) > 1 else [log for _, log in chosen.values()]


def unless_missing(holds, logs, claims):
    """A verdict on a mean: None where it does not hold and a seed has no log that submission.json names or, where that names
    none, the README."""
    named = claims.seeds or (claims.readme.seeds() if claims.readme else ())
    return None if holds is False and not set(named) <= {log.seed for log in logs} else holds


def series(logs):
    """{name of a stage: {log's name: stage}} of all stages with a figure outside training."""
    found = {}
    for log in logs:
        for stage in distinct_stages(log):
            found.setdefault(stage.name, {})[log.name] = stage
    return found


def matches(claimed, figures):
    """How a claim comes out of the figures of the seeds: "mean", "a seed", a "subset" of the seeds, or None."""
    figures = [one for one in figures if one is not None]
    if not figures:
        return None
    unit = max((one.unit for one in figures if isinstance(one, Printed)), default=0.0)
    if agrees(claimed, mean(map(float, figures)), unit):
        return "mean"
    if any(agrees(claimed, one) for one in figures):
        return "a seed"
    for count in range(2, len(figures) if len(figures) <= 10 else 2):
        if any(agrees(claimed, mean(map(float, some)), unit) for some in combinations(figures, count)):
            return "subset"
    return None


def other_stage(claimed, logs, kind):
    """(name, whether it is a diagnostic) of a stage whose mean or one seed's figure a claim is; None where none is."""
    found = [
        (name, any(stage.diagnostic for stage in stages.values()))
        for name, stages in series(logs).items()
        if matches(claimed, [getattr(stage, kind) for stage in stages.values()]) in ("mean", "a seed")
    ]
    return min(found, key=lambda one: one[1], default=None)


def byte_figures(folder, log, claims):
    """What may be called a submission's bytes: totals of a log, and its model with the code as printed, shipped, claimed."""
    codes = [size for size, _ in log.code_bytes] + [log.compressed_code_bytes]
    codes += [entry.size for entry in folder.entries if entry.name == "train_gpt.py"]
    codes += [int(claims.values[key]) for key in CODE_KEYS if isinstance(claims.values.get(key), Printed)]
    codes = [one for one in codes if one]
    models = [log.model_bytes] if log.model_bytes else [log.total_bytes - one for one in codes if log.total_bytes]
    return [log.total_bytes, *models, *(model + code for model in models for code in codes)], codes


def clock_of(name):
    """ "train" or "eval" where a key or a column's title is that of seconds, else None."""
    words = set(re.split(r"[\W_]+", name.lower()))
    if not words & {"seconds", "secs", "sec", "s", "time", "wallclock"} or words & {"step", "ms", "limit", "budget", "cap"}:
        return "eval" if words <= {"eval"} else None
    kinds = {"train": {"train", "training", "wallclock"}, "eval": {"eval", "evaluation", "scoring"}}
    found = [kind for kind, names in kinds.items() if words & names]
    return found[0] if len(found) == 1 else None


def seconds_of(name, log):
    """Seconds that a log tells of what a key or a title names: of training alone and with calibration and packing, or of the
    pass that scores, with preparation, and of all passes. [] where it tells none."""
    clock, own = clock_of(name), log.train_seconds
    if clock == "train" and own is not None:
        return [own, own + (log.hessian_seconds or 0.0), own + (log.hessian_seconds or 0.0) + (log.pack_seconds or 0.0)]
    own, everything = eval_seconds(log) if clock == "eval" else (None, ())
    prepared = sum(seconds for seconds, _ in log.prepared.values())
    return [] if own is None else [own, own + prepared, sum(everything), sum(everything) + prepared]
