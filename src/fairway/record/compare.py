"""`fairway compare`: whether one set of runs is better than another, or than a record, and what may be said of it.

Differences are own - other, in bpb: below 0 own is better.
"""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np

from ..problem import Problem
from ..referee.margins import RECORD_CHANCE
from ..referee.review import refuse_no_bpb
from ..referee.rules import read_policy
from ..terminal import print_table
from .quote import digits_of, quotable, span_text
from .sides import ComparedSide, compared_side, path_list, per_document, refuse_other_texts, refuse_shared_run, why_unpaired
from .statistics import BOOTSTRAP, Judgement, judge_by_documents, judge_by_seeds, judged_margins

OTHER_MACHINES = (
    "seed noise understates what another machine gives: the same contest code run elsewhere has differed by 0.0037 bpb,"
    " seven times its spread between seeds"
)


def compare(runs, against, record):
    """Compares scored runs with others (`against`: paths) or with a record (`record`: its bpb, or those of its seeds).

    runs, against: run folders, or folders of them. With neither, the runs are only described. Returns

        {"runs", "against": {"name", "runs": [{run, seed, bpb}], "mean", "std", "n", "interval"} or None,
         "delta": {"bpb", "nats_per_token", "nats_per_byte"} or None, "interval": 95 % of delta bpb or None,
         "test": "paired t", "Welch t", "one-sample t", "bootstrap over documents" or None, "because": why this test,
         "p_value": one-sided, that the runs are better, "p_two_sided",
         "margins": {unit: {"bpb", "p_value": one-sided, that they are better by more, "met": p < 0.01, None if untested}},
         "noise": what forbids a claim or None, "notes": [text], "sentence": what may be quoted}

    nats_per_token is None where tokens differ; a record's tokens are taken to be the runs'. A bootstrap tells nothing of
    seeds, so it meets no margin. Problem for unscored or inconsistent runs, different validation texts, a run on both sides.
    """
    if against and record:
        raise Problem("give --against RUNS or --record BPB, not both")
    own, other = compared_side(runs), None
    if record:
        refuse_no_bpb(record)
        other = ComparedSide("the record", (), tuple(record))
    elif against:
        other = compared_side(against)
        refuse_shared_run(own, other)
        if own.name == other.name:
            own, other = replace(own, name=path_list(runs)), replace(other, name=path_list(against))
    every = own.runs + (other.runs if other else ())
    refuse_other_texts(every)
    judged = judge(own, other)
    tokenizers = {one.run.get("tokenizer_sha256") for one in every}
    bytes_per_token = mean(one.bytes_per_token for one in own.runs)
    result = {"runs": own.as_json(), "against": other and other.as_json()}
    result["delta"] = other and differences_of(own, other, bytes_per_token if len(tokenizers) == 1 else None)
    result |= {"interval": judged.interval, "test": judged.test, "because": judged.because}
    result["p_value"] = judged.chance and judged.chance(0.0)
    result["p_two_sided"] = judged.two_sided
    result["margins"] = judged_margins(judged, read_policy().limit("S1"), bytes_per_token)
    result["noise"] = noise_of(result)
    result["notes"] = [*side_notes(own, other), *judged.notes]
    result["sentence"] = quotable(result)
    return result


def differences_of(own, other, bytes_per_token):
    """The difference of the means in three units; nats_per_token None without bytes a token."""
    delta = mean(own.figures) - mean(other.figures)
    nats = delta * math.log(2)
    return {"bpb": delta, "nats_per_token": bytes_per_token and nats * bytes_per_token, "nats_per_byte": nats}


def judge(own, other):
    """The Judgement of the test that the two sides allow."""
    if other is None:
        return Judgement(None, "there is nothing to compare with; give --against RUNS or --record BPB")
    if not other.runs and len(own.figures) > 1:
        return judge_by_seeds(own.figures, other.figures, "the other side is a record")
    if other.runs and len(own.figures) == len(other.figures) == 1:
        return judge_single_runs(own.runs[0], other.runs[0])
    for side in (own, other):
        if len(side.figures) == 1:
            return Judgement(None, f"one run of {side.name} has no spread to judge by; train it with more seeds")
    own_runs, other_runs = (sorted(side.runs, key=lambda one: one.seed) for side in (own, other))
    unpaired = why_unpaired(own_runs, other_runs)
    return judge_by_seeds([one.bpb for one in own_runs], [one.bpb for one in other_runs], unpaired)


def judge_single_runs(one, two):
    """The Judgement of two runs by the documents of their validation text. Problem where those are not the same."""
    nats_a_D, bytes_a_D = per_document(one)
    nats_b_D, bytes_b_D = per_document(two)
    if not np.array_equal(bytes_a_D, bytes_b_D):
        raise Problem(f"{one.folder} and {two.folder} are scored on different documents; score both on one text, alike")
    return judge_by_documents(nats_a_D, nats_b_D, bytes_a_D)


def side_notes(own, other):
    """What a reader should know of the runs themselves."""
    notes = []
    for side in [own, other] if other and other.runs else [own]:
        for key, what in (("recipe_hash", "recipes"), ("source_hash", "versions of the code"), ("data_hash", "data")):
            if len(values := side.shared(key)) > 1:
                notes.append(f"{side.name} mixes {what} ({', '.join(map(str, values))}): its spread is not of seeds alone")
        twice = [seed for seed, count in Counter(one.seed for one in side.runs).items() if count > 1]
        if twice:
            notes.append(
                f"seed {twice[0]} stands twice in {side.name}: such runs begin alike, their spread understates noise"
            )
    every = own.runs + (other.runs if other else ())
    if len({one.run.get("tokenizer_sha256") for one in every}) > 1:
        notes.append(
            "the tokenizers differ: bpb can be compared, nats a token cannot; that reading is in the first's tokens"
        )
    elif other and len({one.run["data_hash"] for one in every}) > 1:
        notes.append("the data folders differ: the validation text has as many bytes, the training text may be another")
    return notes


def noise_of(result):
    """What forbids a claim: too few runs, no spread, or an interval around 0; None where nothing does."""
    if result["against"] is None:
        return None if result["runs"]["n"] > 1 else "one run has no spread to judge by; train it with more seeds"
    if result["test"] is None:
        return result["because"]
    low, high = result["interval"]
    return "within noise: 0 lies in the 95 % interval of the difference" if low <= 0 <= high else None


def print_comparison(result):
    """The sides and their runs, the margins, the sentence; below what it was tested with and what limits it."""
    digits, rows = digits_of(result), []
    for side in filter(None, (result["runs"], result["against"])):
        spread = "-" if side["std"] is None else f"{side['std']:.{digits}f}"
        names = [
            (Path(one["run"]).name if one["run"] else "figure", "-" if one["seed"] is None else one["seed"])
            for one in side["runs"]
        ]
        seed = f"n = {side['n']}" if side["n"] > 1 else names[0][1]
        rows.append((side["name"], seed, f"{side['mean']:.{digits}f}", spread, span_text(side["interval"], digits)))
        for (name, seed), one in zip(names, side["runs"], strict=True):
            rows += [(f"  {name}", seed, f"{one['bpb']:.{digits}f}", "", "")] if side["n"] > 1 else []
    print_table("bits per byte of the packed files", ("", "seed", "bpb", "sd", "95 % of the mean"), rows)
    if result["test"]:
        print()
        print_margins(result, digits)
    print(*["", result["sentence"], ""], sep="\n")
    if result["test"]:
        print(f"tested by {result['test']}: {result['because']}")
    print(*filter(None, [result["noise"]]), *result["notes"], OTHER_MACHINES, sep="\n")


def print_margins(result, digits):
    """The difference, and how likely it is more than nothing and than the contest's margin."""
    words, size = {True: "yes", False: "no", None: "-"}, read_policy().limit("S1")
    delta, chance = result["delta"], result["p_value"]
    nats = "-" if delta["nats_per_token"] is None else f"{delta['nats_per_token']:+.{digits}f}"
    title = (
        f"difference {delta['bpb']:+.{digits}f} bpb (95 % {span_text(result['interval'], digits, '+')}),"
        f" {nats} nats a token, {delta['nats_per_byte']:+.{digits}f} nats a byte"
    )
    met = None if result["test"] == BOOTSTRAP else chance < RECORD_CHANCE
    rows = [("better at all", "", f"{chance:.2g}", words[met])]
    for unit, one in result["margins"].items():
        rows.append((f"better by {size:g} {unit}", f"{one['bpb']:.5f}", f"{one['p_value']:.2g}", words[one["met"]]))
    print_table(title, ("", "in bpb", "one-sided p", f"p < {RECORD_CHANCE:g}"), rows)
