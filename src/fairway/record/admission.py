"""Which runs a record may be made from: what is never right, and what may be allowed and then stands in the README."""

import math
from pathlib import Path

from ..files import read_json
from ..node import digest
from ..problem import DoesNotHold
from ..referee.rules import OVERSHOOT, read_policy
from ..referee.stated import artifact_phases
from ..referee.verdict import FAIL, NOT_TESTED, PASS
from ..runfolder import LEDGER, METRICS, PACKED, PROGRAM, RECIPE, RUN, SCORE
from ..trials.rows import SEEDS_FILE
from .measured import faults_of, measured_runs
from .runfiles import lacking

OTHER_KINDS = ("A1", "T1", "T2", "T4")  # rules whose figures are looked at themselves: kinds "cap" and "time"
AUDIT_WORDS = (PASS, FAIL, NOT_TESTED)
HASH_DIGITS = 12  # of a file's SHA-256, as an audit writes it
# Of run.json, once a run is scored.
NEEDED_OF_RUN = {
    "torch": str, "device": str, "world_size": int, "steps": int, "tokens": int, "phases": dict, "bpb": dict,
    "sha256": dict,
}  # fmt: skip
CLOCK_APART = 5.0  # s between the last step's end and the end of training, at most, beside one step


def chosen_runs(paths):
    """The Measureds of the runs at and below the paths, in the order given, or by seed where one folder of them is given.
    Runs that were put aside when a seed was begun anew (seeds.json) are none, unless named."""
    runs, named = measured_runs(paths), {Path(path).resolve() for path in paths}
    aside = set()
    for parent, rows in begun_beside(runs):
        own = {row["folder"] for row in rows}
        begun = {one.get("folder") or row["folder"] for row in rows for one in row["attempts"]}
        aside |= {parent / name for name in begun - own}
    kept = [one for one in runs if one.folder.resolve() not in aside - named]
    return kept if len(paths) > 1 else sorted(kept, key=lambda one: one.seed)


def refuse_false(one):
    """DoesNotHold for a run that is not scored, whose files do not agree with each other, or whose audit is of other files
    or figures: nothing allows that."""
    for name, content, stage in ((LEDGER, one.ledger, "pack"), (SCORE, one.score, "score")):
        if content is None:
            raise DoesNotHold(f"{one.folder} has no {name}; `fairway {stage} {one.folder}` writes it")
    if lack := lacking(one.run, NEEDED_OF_RUN, {}):
        raise DoesNotHold(f"{one.folder / RUN} {lack}; make the run again")
    if one.score.get("normalised") is False:
        raise DoesNotHold(f"{one.folder} was scored by a rule that is no probability, which is no score; score it again")
    if not isinstance(one.train_seconds, float) or not one.score["stages"]:
        raise DoesNotHold(f"{one.folder} lacks the seconds of training or the stages of its score; make the run again")
    faults = faults_of(one) or metrics_faults(one) or recipe_faults(one)
    if faults:
        raise DoesNotHold(f"{one.folder} does not agree with itself: {faults[0]}; pack, score and audit it again")
    faults = audit_faults(one)
    if faults:
        raise DoesNotHold(f"{one.folder}: {faults[0]}; `fairway audit {one.folder}` judges the run as it is")


def refuse_twice(runs):
    """DoesNotHold where two runs have one seed: a seed has one log and one figure."""
    by_seed = {}
    for one in runs:
        other = by_seed.setdefault(one.seed, one)
        if other is not one:
            raise DoesNotHold(f"{other.folder} and {one.folder} are both of seed {one.seed}; give one of them")


def recipe_faults(one):
    """Where recipe.py is not the recipe that was trained, as texts."""
    found, wanted = digest(one.recipe()), one.run["recipe_hash"]
    return [] if found == wanted else [f"{RECIPE} has the hash {found}, run.json says {wanted}"]


def metrics_faults(one):
    """Where metrics.jsonl does not fit run.json, as texts: it holds one line a step, and ends when training did."""
    rows, run = one.metrics(), one.run
    if not rows or len(rows) != run["steps"] or any(row["step"] != at for at, row in enumerate(rows, 1)):
        return [f"{METRICS} has {len(rows)} lines that are not the {run['steps']} steps of run.json"]
    if rows[-1].get("tokens") != run["tokens"]:
        return [f"{METRICS} ends after {rows[-1].get('tokens')} tokens, run.json says {run['tokens']}"]
    apart, step = one.train_seconds - rows[-1]["seconds"], one.train_seconds / run["steps"]
    if not -0.01 <= apart <= CLOCK_APART + step:
        return [f"{METRICS} ends after {rows[-1]['seconds']} s, run.json says {one.train_seconds:.4f} s of training"]
    return []


def audit_faults(one):
    """Where an audit is of another model.bin, or of other figures than the run's, as texts."""
    rows = one.audit.get("verdicts", ()) if one.audit else ()
    faults, wanted = [], one.run["sha256"][PACKED][:HASH_DIGITS]
    if one.audit and (found := judged_hash(one, PACKED)) not in (wanted, None):
        faults.append(f"its audit is of another {PACKED} ({found}), the run's is {wanted}")
    faults += [
        f"its audit says {row['verdict']!r:.40} of {row['rule']!r:.40}" for row in rows if row["verdict"] not in AUDIT_WORDS
    ]
    known = {"A1": one.total_bytes, "T1": one.train_seconds, "T2": counted_seconds(one), "T4": one.score_seconds}
    known = {rule: (figure, 0.00051) for rule, figure in known.items()}  # an audit rounds seconds to thousandths
    for row in rows:
        (figure, apart), judged = known.get(row["rule"], (None, 0.0)), row.get("measured")
        if row["rule"] == "G3" and isinstance(judged, dict) and "bpb" in judged:
            figure, judged = one.bpb, judged["bpb"]
        if figure is not None and type(judged) in (int, float) and not math.isclose(judged, figure, abs_tol=apart):
            faults.append(f"its audit judged {judged} under {row['rule']}, the run says {figure}")
    if one.audit and one.audit["summary"].get("fail") != sum(row["verdict"] == FAIL for row in rows):
        faults.append(f"its audit counts {one.audit['summary'].get('fail')} FAIL and lists others")
    return faults


def judged_hash(one, name):
    """The first digits of a file's SHA-256 that an audit found, or None where it does not say."""
    for row in one.audit["verdicts"]:
        if row["rule"] == "G3" and row["evidence"] == RUN and isinstance(row.get("measured"), dict):
            return row["measured"].get(name)
    return None


def breaches_of(runs):
    """[(kind, text)] of what the rules or this tool ask for and these runs do not keep. Kinds are the words of --allow."""
    found = [*mixed(runs)]
    for one in runs:
        found += [("cap", text) for text in over_cap(one)] + [("time", text) for text in over_time(one)]
    found += [("seeds", text) for text in lacking_seeds(runs)]
    return found + [("audit", text) for one in runs for text in audit_lacks(one)]


def mixed(runs):
    """Yields breaches where runs differ in recipe, code or data: each run that differs from the first."""
    kinds = (
        ("recipes", "recipe", lambda one: one.run["recipe_hash"]),
        ("code", PROGRAM, lambda one: one.run["sha256"][PROGRAM][:HASH_DIGITS]),
        ("code", "source hash", lambda one: one.run.get("source_hash")),
        ("data", "data", lambda one: one.run["data_hash"]),
        ("data", "tokenizer", lambda one: str(one.run.get("tokenizer_sha256"))[:HASH_DIGITS]),
    )
    for kind, what, value in kinds:
        for one in runs[1:]:
            if value(one) != value(runs[0]):
                yield kind, f"{called(one)} has {what} {value(one)}, {called(runs[0])} has {value(runs[0])}"


def over_cap(one):
    """Texts of a run's files that are over the cap."""
    cap = read_policy().limit("A1")
    return [f"{called(one)}: {one.total_bytes:,} bytes, the cap is {cap:,}"] if one.total_bytes > cap else []


def over_time(one):
    """Texts of what a run took too long for."""
    limits = {rule: read_policy().rules[rule].default for rule in ("T1", "T2", "T4")}
    clocks = [("T1", one.train_seconds, "training"), ("T4", one.score_seconds, "scoring")]
    if one.train_seconds <= limits["T1"] + OVERSHOOT:  # or the sum is over with its part
        clocks.insert(1, ("T2", counted_seconds(one), " and ".join(artifact_phases(audited_policy(one)))))
    over = [row for row in clocks if row[1] > limits[row[0]] + OVERSHOOT]
    return [f"{called(one)}: {seconds:.1f} s of {what}, the limit is {limits[rule]:g} s" for rule, seconds, what in over]


def counted_seconds(one):
    """Seconds of the artifact by T2 of the policy that the run was audited under, or of the default one."""
    return sum(one.run["phases"].get(phase, 0.0) for phase in artifact_phases(audited_policy(one)))


def audited_policy(one):
    """The policy that the run was audited under, or the default one."""
    return read_policy(one.audit["policy"]) if one.audit and "policy" in one.audit else read_policy()


def lacking_seeds(runs):
    """Texts of seeds that are too few, or were begun together with these and are not among them."""
    wanted, own = read_policy().limit("S2"), [one.seed for one in runs]
    found = [f"{len(own)} of {wanted} seeds ({', '.join(map(str, own))})"] if len(own) < wanted else []
    for parent, rows in begun_beside(runs):
        missing = [row["seed"] for row in rows if row["attempts"] and row["seed"] not in own]
        if missing:
            found.append(
                f"{parent.name}/{SEEDS_FILE}: seed {', '.join(map(str, missing))} was begun and is not among the runs"
            )
    return found


def begun_beside(runs):
    """[(folder, its rows of seeds.json)] of the folders that the runs lie in. DoesNotHold for a list that is none."""
    found = []
    for parent in dict.fromkeys(one.folder.resolve().parent for one in runs):
        if (parent / SEEDS_FILE).is_file():
            content = read_json(parent / SEEDS_FILE)
            rows = content.get("seeds") if isinstance(content, dict) else None
            if not isinstance(rows, list) or any(map(is_no_row, rows)):
                raise DoesNotHold(f"{parent / SEEDS_FILE} is no list of seeds; restore it")
            found.append((parent, rows))
    return found


def is_no_row(row):
    """Whether something is no row of seeds.json."""
    keys = {"seed": int, "folder": str, "attempts": list}
    if not isinstance(row, dict) or any(not isinstance(row.get(key), kind) for key, kind in keys.items()):
        return True
    return any(not isinstance(one, dict) or not isinstance(one.get("began"), str) for one in row["attempts"])


def attempts_of(runs):
    """[(seed, folder, began, ended, how it ended)] of all attempts that are on record beside the runs; runs that are on no
    record say so."""
    pairs = [(row, one) for _, rows in begun_beside(runs) for row in rows for one in row["attempts"]]
    known = [
        (row["seed"], Path(one.get("folder") or row["folder"]).name, one["began"], one.get("ended") or "-", ending(one))
        for row, one in pairs
    ]
    kept = {(parent / row["folder"]).resolve() for parent, rows in begun_beside(runs) for row in rows if row["attempts"]}
    alone = [one for one in runs if one.folder.resolve() not in kept]
    return known + [
        (one.seed, one.name, one.run.get("began", "-"), "-", "no list of its attempts was kept") for one in alone
    ]


def ending(attempt):
    """How an attempt ended, and why where it says so."""
    words = str(attempt.get("outcome") or "unknown")
    return f"{words}: {attempt['reason']}" if attempt.get("reason") else words


def called(one):
    """A run by its folder's name and its seed."""
    return one.name if one.name == f"seed{one.seed}" else f"{one.name} (seed {one.seed})"


def audit_lacks(one):
    """Texts of what a run's audit lacks: it, its files, or a rule that it failed."""
    if one.audit is None:
        return [f"{called(one)}: no audit"]
    wanted, found = one.run["sha256"][PROGRAM][:HASH_DIGITS], judged_hash(one, PROGRAM)
    if found != wanted or judged_hash(one, PACKED) is None:
        return [f"{called(one)}: its audit is of {PROGRAM} {found}, the run's is {wanted}"]
    rules = dict.fromkeys(row["rule"] for row in one.audit["verdicts"] if row["verdict"] == FAIL)
    rules = [rule for rule in rules if rule not in OTHER_KINDS]
    return [f"{called(one)}: its audit fails {', '.join(rules)}"] if rules else []
