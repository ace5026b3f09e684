"""What a run folder states (run.json, ledger.json, score.json) against its files: bytes, seconds, hashes, figures."""

import json
import math
from pathlib import Path

from ..files import file_sha256
from ..problem import Problem
from ..runfolder import LEDGER, PACKED, PROGRAM, READABLE, RUN, SCORE
from .folder import read_folder
from .rules import OVERSHOOT

CONTEST = "8 H100"
PRINTED_ALIKE = 1e-9  # relative: figures that were printed in full


def judge_bytes(findings, folder):
    """A1 to A3: the two files on disk, in three readings, and the ledger that sums them up."""
    folder, cap = Path(folder), findings.limit("A1")
    sizes = {name: (folder / name).stat().st_size for name in (PROGRAM, PACKED)}
    total = sum(sizes.values())
    findings.say(
        "A1", total <= cap, total, cap, 0, f"{PROGRAM} {sizes[PROGRAM]:,} + {PACKED} {sizes[PACKED]:,} bytes on disk"
    )
    ledger = stated(folder / LEDGER)
    claimed = ledger.get("total")
    readable = folder / READABLE
    readings = {"as shipped": total, "as claimed (ledger.json)": claimed}
    if readable.is_file():
        readings["as readable text, which does not ship"] = sizes[PACKED] + readable.stat().st_size
    findings.say("A3", claimed == total, readings, total, 0, "the ledger states the files that ship")
    files, owners = ledger.get("files"), ledger.get("owners")
    summed = sum(one["bytes"] for one in owners) if owners_known(owners) else None
    good = files == sizes and summed == total
    findings.say("G3", good, {"files": files, "sum of owners": summed}, {"files": sizes, "total": total}, 0, LEDGER)


def owners_known(owners):
    """Whether a ledger's owners can be summed."""
    return isinstance(owners, list) and all(isinstance(one, dict) and type(one.get("bytes")) is int for one in owners)


def judge_clock(findings, folder, run):
    """T1, T2, T4, T6: the seconds of each phase, in two readings. Over the limit on other machines than the contest's,
    nothing is told."""
    phases, limit = run.get("phases", {}), findings.limit("T1")
    contest, where = on_contest_machine(run), f"on {run.get('world_size')} x {run.get('device')}"

    def clocked(rule, seconds, evidence):
        if seconds is None or seconds < 0:
            findings.untested(rule, f"{evidence}: no time of it in run.json or score.json")
        elif seconds > limit + OVERSHOOT and not contest:
            findings.untested(rule, f"{evidence}: {seconds:.1f} s {where}; the limit is for {CONTEST}")
        else:
            findings.say(rule, seconds <= limit + OVERSHOOT, round(seconds, 3), limit, OVERSHOOT, f"{evidence} {where}")

    train = number(phases.get("train"))
    clocked("T1", train, "the training loop, compilation apart")
    parts = artifact_phases(findings.policy)
    known = [number(phases.get(name)) for name in parts]
    clocked("T2", None if None in known else sum(known), " + ".join(parts))
    stages = stated(Path(folder) / SCORE).get("stages")
    seconds = [number(one.get("seconds")) for one in stages if isinstance(one, dict)] if isinstance(stages, list) else []
    scored = seconds[-1] if seconds else None
    clocked("T4", scored, "the pass that gives the score")
    clocked("T6", None if None in seconds or not seconds else sum(seconds), f"all {len(seconds)} passes")


def on_contest_machine(run):
    """Whether run.json says that its seconds are of the contest's machine."""
    device = str(run.get("device"))
    return run.get("world_size") == 8 and ("H100" in device or "H200" in device)


def artifact_phases(policy):
    """The phases of a run that count towards T2 under a policy: all that read data to set weights, or packing too."""
    return ["train", "calibrate"] + ["quantise", "encode"] * (policy.limit("T2") == "packed")


def number(value):
    """A float, or None for what is no finite number."""
    return float(value) if type(value) in (int, float) and abs(value) < 1e300 else None


def judge_hashes(findings, folder, run, recipe_digest, data_hash):
    """G3, G5: run.json and score.json name these very files, this recipe and these data."""
    folder = Path(folder)
    found = {name: file_sha256(folder / name) for name in (PROGRAM, PACKED)}
    named = run.get("sha256", {})
    same = all(named.get(name) == found[name] for name in found)
    findings.say(
        "G3", same, {n: h[:12] for n, h in found.items()}, {n: str(named.get(n))[:12] for n in found}, 0, "run.json"
    )
    findings.say(
        "G5", run.get("recipe_hash") == recipe_digest, recipe_digest, run.get("recipe_hash"), 0, "recipe.py, run.json"
    )
    score = stated(folder / SCORE)
    if not score:
        findings.untested("G3", f"no {SCORE}: `fairway score` writes it")
        return
    same = score.get("model_sha256") == found[PACKED]
    findings.say(
        "G3", same, found[PACKED][:12], str(score.get("model_sha256"))[:12], 0, f"{SCORE}: the model that was scored"
    )
    if score.get("data_hash") != data_hash:
        findings.untested("G3", f"{SCORE} is of other data ({score.get('data_hash')}) than these ({data_hash})")


def judge_score_file(findings, folder, run, evaluation, data_hash, targets, counted):
    """G3: score.json's figures against each other, run.json, and the targets and bytes that the data have. Returns its
    content, {} where it is absent, of other data, or of another `evaluation` ({name: text}) than the files'."""
    score = stated(Path(folder) / SCORE)
    if not score or score.get("data_hash") != data_hash:
        return {}
    if score.get("evaluation") != evaluation:
        findings.untested("G3", f"{SCORE} is of another evaluation ({score.get('evaluation')}) than {PROGRAM}'s own")
        return {}
    stages, bpb, nats = score.get("stages"), number(score.get("bpb")), number(score.get("nats"))
    last = stages[-1] if isinstance(stages, list) and stages and isinstance(stages[-1], dict) else {}
    pairs = {
        "bpb": (bpb, None if nats is None else nats / math.log(2) / counted),
        "tokens": (number(score.get("tokens")), targets),
        "bytes": (number(score.get("bytes")), counted),
        "implied_bytes": (number(score.get("implied_bytes")), counted),
        "the last stage's bpb": (number(last.get("bpb")), bpb),
    }
    if score.get("normalised") is not False:  # what is no probability never becomes the run's own figure
        pairs["run.json's bpb.packed"] = number(run.get("bpb", {}).get("packed")), bpb
    apart = {name: one for name, one in pairs.items() if None in one or abs(one[0] - one[1]) > PRINTED_ALIKE * abs(one[1])}
    measured, expected = ({name: one[at] for name, one in (apart or pairs).items()} for at in (0, 1))
    where = f"{SCORE} against itself, {RUN} and the data" + (f": {len(apart)} figures do not fit" if apart else "")
    findings.say("G3", not apart, measured, expected, f"{PRINTED_ALIKE} of it", where)
    return score


def stated(path):
    """What a JSON file of a run folder holds, or {} where it is absent, broken, no regular file or no object."""
    path = Path(path)
    try:
        found = json.loads(read_folder(path.parent).text(path.name))
    except (Problem, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
