"""What boxed runs of a submission's two files prove: that they need nothing else, and that they score as the scorer does
that the other probes look into.

N targets.
"""

import math

import numpy as np

from ..data.tokenizer import BOS_ID
from ..runfolder import PACKED, PROGRAM
from .heard import reached_out
from .probes import ONE_IN_A_MILLION, Spread, kraft_deficit, moved_between

PRINTED = 1e-6  # nats a target, of float32 in nats.npy
# Another process may take another number of threads, which rounds otherwise.
OTHER_THREADS = Spread(2e-5, 4e-6)


def judge_score_run(findings, run, expected_N, spread, where):
    """A8, D2, D3, D7: the files scored a text on their own, each target once, to the nats that the packaged scorer gives."""
    boxed = run.boxed
    if boxed.stopped:
        findings.untested("A8", f"scoring {where} was stopped ({boxed.stopped}) after {boxed.seconds:.0f} s: see --full")
        return
    if run.nats_N is None:
        why = "it ended, but left no nats.npy" if boxed.code == 0 else f"it ended with code {boxed.code}"
        findings.say("A8", False, why, "a score", evidence=f"{where}, in a box with the two files alone: {tail(boxed)}")
        return
    findings.say("D2", True, "no training shard was there, and scoring ended", evidence=where)
    judge_boxed_network(findings, boxed, where)
    count = len(run.nats_N)
    finite = bool(np.isfinite(run.nats_N).all() and (run.nats_N >= -1e-4).all())
    findings.say("D7", count == len(expected_N) and finite, count, len(expected_N), 0, f"nats of each target, {where}")
    stated, own = run.claims.get("nats"), float(run.nats_N.sum())
    good = isinstance(stated, float) and abs(stated - own) <= PRINTED * (count + abs(own))
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


def judge_boxed_network(findings, boxed, where):
    """D3: nothing was asked of the network."""
    tried = sorted({event.what for event in reached_out(boxed.events)})
    findings.say("D3", not tried, tried or "no connection was tried", "none", evidence=where)


def judge_code_run(findings, boxed):
    """A2, A4: the two files were all that lay in the box; what else ran there as code they made themselves."""
    code = {event.what for event in boxed.events if event.kind in ("read", "load") and event.what.startswith("/box/work/")}
    code = {name.removeprefix("/box/work/") for name in code if name.endswith((".py", ".so", ".cu", ".cpp", ".c"))}
    made = len(code - {PROGRAM})
    evidence = f"the box held {PROGRAM}, {PACKED} and a text, and scoring ended; files of code that it made itself: {made}"
    findings.say("A2", True, PROGRAM, PROGRAM, evidence=evidence)
    native = sorted(name for name in code if not name.endswith(".py"))
    findings.say("A4", True, f"{len(native)} made by the run", "none that ships", evidence=evidence)


def judge_pack_run(findings, made, boxed, wanted, here):
    """D1, E14, A9: the artifact made again from the weights, with validation nowhere to be found."""
    where = "packing in a box without validation text"
    if boxed.stopped:
        for rule in ("D1", "E14", "A9"):
            findings.untested(rule, f"{where} was stopped ({boxed.stopped}) after {boxed.seconds:.0f} s: see --full")
        return
    if made is None:
        findings.say("D1", False, f"code {boxed.code}", "the artifact", evidence=f"{where}: {tail(boxed)}")
        return
    read = sorted({event.what for event in boxed.events if event.kind == "read" and event.what.startswith("/box/data/")})
    findings.say("D1", True, "the artifact was made", evidence=where)
    findings.say("E14", True, read or "no text at all", "training text alone", evidence=where)
    if made == wanted:
        findings.say("A9", True, made[:12], wanted[:12], 0, "the same bytes, from the weights and training text alone")
    else:
        findings.untested(
            "A9", f"the artifact came out otherwise ({made[:12]}, not {wanted[:12]}) {here}: rounding, or more"
        )


def judge_train_run(findings, made, boxed, steps):
    """D1: training begins and ends with validation nowhere to be found."""
    where = f"{steps} steps of training in a box without validation text"
    if boxed.stopped:
        findings.untested("D1", f"{where} was stopped ({boxed.stopped}) after {boxed.seconds:.0f} s: see --full")
        return
    findings.say(
        "D1", made, "weights were written" if made else f"code {boxed.code}", "weights", evidence=where + tail(boxed)
    )
    judge_boxed_network(findings, boxed, where)


def judge_figure(findings, run, claimed):
    """G3: the score of the whole validation text, again, to the digits that score.json prints."""
    if run.nats_N is None or not claimed:
        return
    bpb, again = claimed.get("bpb"), run.claims.get("bpb")
    tolerance = 1e-6 * abs(again)
    good = isinstance(bpb, float) and abs(bpb - again) <= tolerance
    findings.say("G3", good, bpb, again, tolerance, "score.json's bpb against a new score of the whole validation text")


def judge_bytes_counted(findings, runs):
    """M1, M7 over [(BoxedScore, bytes by our own count, where)]: the bytes that nats and bpb imply, text by text."""
    seen = []
    for run, counted, where in runs:
        bpb = run.claims.get("bpb")
        if run.nats_N is None or not isinstance(bpb, float) or not bpb:
            continue
        implied, slack = float(run.nats_N.sum()) / math.log(2) / bpb, findings.limit("M1")
        good = abs(implied - counted) <= slack * counted
        findings.say(
            "M1", good, implied, counted, f"{slack:.1%}", f"implied by nats and bpb against decode-and-count, {where}"
        )
        seen.append((implied / len(run.nats_N), counted / len(run.nats_N)))
    if len(seen) > 1:
        rates = [f"{implied:.4f} for {counted:.4f}" for implied, counted in seen]
        good = all(abs(implied - counted) <= 0.001 * counted for implied, counted in seen)
        findings.say("M7", good, rates, evidence="bytes a token that it counts, for what the tokens decode to")


def tail(boxed, lines=3):
    """The last lines that a run printed."""
    return " / ".join(boxed.output.strip().splitlines()[-lines:])
