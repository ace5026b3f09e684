"""What boxed runs of a submission's two files prove: that they need nothing else, and that they score as the scorer does
that the other probes look into.

N targets.
"""

import math
from pathlib import Path

import numpy as np

from ..data.tokenizer import BOS_ID
from ..runfolder import PACKED, PROGRAM
from .facts import NATIVE_NAMES
from .heard import judge_network
from .probes import NEGATIVE, Spread, kraft_deficit, moved_between
from .stated import number
from .streams import ONE_IN_A_MILLION

CONSTANT = 0.004  # relative: bytes a token that move by less than half of it, between texts that differ by it, do not count
PRINTED = 1e-6  # nats a target, of float32 in nats.npy
# Another process may take another number of threads, which rounds otherwise.
OTHER_THREADS = Spread(2e-5, 4e-6)


def judge_score_run(findings, run, expected_N, spread, where, training):
    """A8, D2, D3, D7: the files scored a text on their own, each target once, to the nats that the packaged scorer gives.

    `training`: paths of the training shards, which lie there and cannot be read."""
    boxed = run.boxed
    if boxed.stopped:
        findings.untested("A8", f"scoring {where} was stopped ({boxed.stopped}) after {boxed.seconds:.0f} s: see --full")
        return
    if run.nats_N is None:
        why = "it ended, but left no nats.npy" if boxed.code == 0 else f"it ended with code {boxed.code}"
        findings.say("A8", False, why, "a score", evidence=f"{where}, in a box with nothing else: {boxed.last_words()}")
        if asked := opened(boxed, training):
            findings.say("D2", False, asked, "no training shard", evidence=f"{where}: it stopped where none can be read")
        return
    asked, why = opened(boxed, training), f"{where}: no training shard could be read, and scoring ended"
    findings.say("D2", not asked, asked or "none was asked for", "no training shard", evidence=why)
    judge_network(findings, boxed.events, where)
    count = len(run.nats_N)
    finite = bool(np.isfinite(run.nats_N).all() and (run.nats_N >= NEGATIVE).all())
    findings.say("D7", count == len(expected_N) and finite, count, len(expected_N), 0, f"nats of each target, {where}")
    stated, own = run.claims.get("nats"), float(run.nats_N.sum())
    good = number(stated) is not None and abs(stated - own) <= PRINTED * (count + abs(own))
    findings.say(
        "G3", good, stated, own, PRINTED * (count + abs(own)), f"its score.json against the sum of its nats, {where}"
    )
    if count != len(expected_N):
        return
    one = moved_between(expected_N, run.nats_N, spread.joined(OTHER_THREADS), np.arange(count))
    evidence = f"{PROGRAM} + {PACKED} in a fresh process against the packaged scorer, {where}: {one.said()}"
    findings.say("A8", one.holds, one.largest, 0.0, one.each, evidence)


def judge_boxed_noise(findings, run, tokens, vocab):
    """C2: what the files charge for uniform noise, against the floor of any code."""
    if run.nats_N is None or len(run.nats_N) != len(tokens) - 1:
        findings.untested("C2", "the files did not score uniform noise in their box")
        return
    free_N = tokens[1:] != BOS_ID
    short, mean = kraft_deficit(run.nats_N[free_N], vocab - 1)
    where = f"the files in a box: {int(free_N.sum()):,} tokens of uniform noise, {max(short, 0.0):.4g} nats below any code"
    findings.say("C2", short <= 0, mean, math.log(vocab - 1), ONE_IN_A_MILLION / len(tokens), where)


def opened(boxed, paths):
    """Names of these files, of the data, that Python in a box tried to open, there or elsewhere; as it says itself."""
    names = {Path(path).name for path in paths}
    return sorted({Path(event.what).name for event in boxed.events if event.kind == "read"} & names)


def judge_boxed_future(findings, run, other, kept_N, spread):
    """C1 of the files themselves: two texts with the same beginning, `kept_N` what is scored before they part."""
    if run.nats_N is None or other.nats_N is None or not len(run.nats_N) == len(other.nats_N) == len(kept_N):
        findings.untested("C1", "the files did not score two texts of one length in their boxes")
        return
    both = run.nats_N[kept_N], other.nats_N[kept_N]
    one = moved_between(*both, spread.joined(OTHER_THREADS), np.flatnonzero(kept_N))
    where = f"the files in boxes, two texts that part at target {int((~kept_N).argmax()):,}: {one.said()}"
    findings.say("C1", one.holds, one.largest, 0.0, one.each, where)


def judge_code_run(findings, boxed):
    """A2, A4: the two files were all that lay in the box; what else ran there as code they made themselves."""
    code = {event.what for event in boxed.events if event.kind in ("read", "load") and event.what.startswith("/box/work/")}
    code = {name.removeprefix("/box/work/") for name in code if name.endswith((".py", *NATIVE_NAMES))}
    made = len(code - {PROGRAM})
    evidence = f"the box held {PROGRAM}, {PACKED} and a text, and scoring ended; files of code that it made itself: {made}"
    findings.say("A2", True, PROGRAM, PROGRAM, evidence=evidence)
    native = sorted(name for name in code if not name.endswith(".py"))
    findings.say("A4", True, f"{len(native)} made by the run", "none that ships", evidence=evidence)


def judge_pack_run(findings, made, boxed, wanted, here, validation):
    """D1, E14, A9: the artifact made again from the weights, with no validation text that could be read.

    `validation`: paths of what lies there and cannot be read."""
    where = "packing in a box without validation text"
    if boxed.stopped:
        for rule in ("D1", "E14", "A9"):
            findings.untested(rule, f"{where} was stopped ({boxed.stopped}) after {boxed.seconds:.0f} s: see --full")
        return
    asked = opened(boxed, validation)
    if made is None:
        findings.say("D1", False, asked or f"code {boxed.code}", "the artifact", evidence=f"{where}: {boxed.last_words()}")
        return
    read = sorted({event.what for event in boxed.events if event.kind == "read" and event.what.startswith("/box/data/")})
    findings.say("D1", not asked, asked or "the artifact was made", "no validation shard asked for", evidence=where)
    findings.say("E14", not asked, read or "no text at all", "training text alone", evidence=where)
    if made == wanted:
        findings.say("A9", True, made[:12], wanted[:12], 0, "the same bytes, from the weights and training text alone")
    else:
        findings.untested(
            "A9", f"the artifact came out otherwise ({made[:12]}, not {wanted[:12]}) {here}: rounding, or more"
        )


def judge_train_run(findings, made, boxed, steps, validation):
    """D1: training begins and ends with no validation text that could be read (`validation`: its paths)."""
    where = f"{steps} steps of training in a box without validation text"
    if boxed.stopped:
        findings.untested("D1", f"{where} was stopped ({boxed.stopped}) after {boxed.seconds:.0f} s: see --full")
        return
    asked = opened(boxed, validation)
    measured = asked or ("weights were written" if made else f"code {boxed.code}")
    findings.say("D1", made and not asked, measured, "weights, nothing of validation", "", f"{where}: {boxed.last_words()}")
    judge_network(findings, boxed.events, where)


def judge_figure(findings, run, claimed):
    """G3: the score of the whole validation text, again, to the digits that score.json prints."""
    if run.nats_N is None or not claimed:
        return
    bpb, again = number(claimed.get("bpb")), number(run.claims.get("bpb"))
    tolerance = 1e-6 * abs(again or 0.0)
    good = None not in (bpb, again) and abs(bpb - again) <= tolerance
    findings.say("G3", good, bpb, again, tolerance, "score.json's bpb against a new score of the whole validation text")


def judge_bytes_counted(findings, runs):
    """M1, M7 over [(BoxedScore, bytes by our own count, where)]: the bytes that nats and bpb imply, text by text."""
    seen = []
    for run, counted, where in runs:
        # Both as the program states them: whether nats are theirs is another rule's question.
        nats, bpb = number(run.claims.get("nats")), number(run.claims.get("bpb"))
        if run.nats_N is None or not nats or not bpb:
            continue
        implied, slack = nats / math.log(2) / bpb, findings.limit("M1")
        good = abs(implied - counted) <= slack * counted
        findings.say(
            "M1", good, implied, counted, f"{slack:.1%}", f"implied by nats and bpb against decode-and-count, {where}"
        )
        seen.append((implied / len(run.nats_N), counted / len(run.nats_N)))
    if len(seen) > 1:
        rates = [f"{implied:.4f} for {counted:.4f}" for implied, counted in seen]
        moved, due = (max(one) / min(one) - 1 if min(one) > 0 else math.inf for one in zip(*seen, strict=True))
        if due < CONSTANT:
            findings.untested("M7", f"the texts have the same bytes a token within {due:.2%}")
            return
        good = moved > CONSTANT / 2
        findings.say("M7", good, rates, evidence="bytes a token that it counts, for what the tokens decode to")
