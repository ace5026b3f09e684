"""The dynamic review: verdicts on a stranger's script by what its runs on noise print, write, read and depend on.

Nothing here looks at the source. A mean below the entropy of the noise that it scored proves a leak or no distribution;
which of the two is found by running it again on other noise.
"""

import math
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..problem import Problem
from .blackbox import SEQUENCE, TRAIN_FILES, VAL_FILE, laboratory, without_numbers
from .facts import NATIVE_NAMES
from .heard import judge_network
from .logs import read_log
from .sandbox import sandbox_fault
from .script import NEW_SYNTAX
from .streams import (
    ONE_IN_A_MILLION,
    balanced_law,
    doubled_law,
    foreign_law,
    narrow_law,
    noise_stream,
    repeated_stream,
    wide_law,
)

TARGETS, SHORT_TARGETS = 32_768, 2_048  # multiples of every usual sequence length: nobody's tail is cut
TAIL = 1024  # targets at the end that floors and byte counts allow to be missing
SPANS = ((12_000, 15_276), (29_493, 32_769))  # a tenth in the middle and the last tenth: tokens of the patched stream
FITTED = 0.005  # nats a target: ten times what chance moves between 16 ids drawn and permuted
NEAR = 0.1  # of the entropy: a script that stands further above it could hide a leak there
BYTES_OFF, FINE, GROSS = 0.001, 0.0002, 0.1  # of the count: what M1 forgives; what is looked into; what a sample never is
VAGUE = 0.01  # of the count: what is printed in so few digits proves nothing
LEAST_MOVED, SURELY_MOVED = 0.75, 0.9  # of the way that the mean nats go when all of some other tokens are counted
DYNAMIC_RULES = ("G6", "C1", "C2", "C3", "C4", "D1", "A9", "D2", "D3", "D7", "M1", "M2", "M7", "A2", "A8")
EVERYWHERE = ("SyntaxError", "IndentationError", "TabError", "NameError", "UnboundLocalError")  # fail on any machine
CODE_ENDINGS = (".py", ".pyc", ".sh", *NATIVE_NAMES)


@dataclass(frozen=True)
class Reading:
    """What a stage reports: mean nats a target and the worth of its last digit, bytes a target that its two figures imply
    (None without both) and how far those may be off by their digits, as a share."""

    name: str
    nats: float
    unit: float
    bytes_each: float | None
    slack: float


def judge_dynamic(findings, folder, script, note, seconds):
    """Runs the script of a folder on noise in the sandbox, for about `seconds` in all, and says what was measured."""
    if not 0 < seconds < math.inf:
        raise Problem(f"{seconds} seconds is no time for runs; give a number above 0")
    fault = sandbox_fault()
    if fault:
        return say_untested(findings, DYNAMIC_RULES, fault)
    try:
        with laboratory(folder, script, note, seconds) as lab:
            judge_runs(findings, lab)
    except (Problem, OSError) as fault:
        say_untested(findings, DYNAMIC_RULES, f"the runs ended: {fault}")


def say_untested(findings, rules, reason):
    """These rules could not be tested."""
    for rule in rules:
        findings.untested(rule, reason)


def judge_runs(findings, lab):
    """Makes the runs and judges them."""
    alphabet = lab.alphabet

    def stream(law, targets, seed, patch=None, spans=()):
        return noise_stream(alphabet, law(alphabet), targets, seed, patch and patch(alphabet), spans)

    wide = lab.run("wide noise", wide_law, stream(wide_law, TARGETS, 1))
    if wide is None:
        return say_untested(findings, DYNAMIC_RULES, "no time was given")
    if not readings(wide):
        judge_network(findings, lab.events(), "trace of runs without network")
        return say_unusable(findings, wide)
    judge_end(findings, wide)
    judge_files(findings, lab, wide)
    runs = {"wide": wide}
    plan = (
        ("narrow", "narrow noise", narrow_law, stream(narrow_law, TARGETS, 2)),
        (
            "patched",
            "narrow noise, two tenths of it other tokens",
            narrow_law,
            stream(narrow_law, TARGETS, 3, foreign_law, SPANS),
        ),
        ("short", "a short stream of other wide noise", wide_law, stream(wide_law, SHORT_TARGETS, 4)),
        ("doubled", "wide noise, each draw twice", doubled_law, stream(doubled_law, TARGETS, 5)),
        ("foreign", "other tokens only", narrow_law, stream(foreign_law, TARGETS, 6)),
        ("absent", "no validation", narrow_law, None),
    )
    for name, label, law, shown in plan:
        trial = lab.run(label, law, shown)
        if trial is not None and (shown is None or readings(trial)):
            runs[name] = trial
    if "absent" in runs:
        # What is printed without validation too is of something else (a check on training text), unless it is the score.
        score = without_numbers(headline_of(wide).name)
        lab.forget({one.name for one in runs["absent"].log.stages if without_numbers(one.name) != score})
    judge_network(findings, lab.events(), "trace of runs without network")
    tainted = judge_artifact(findings, lab, runs)
    judge_floor(findings, lab, runs, tainted)
    judge_bytes_and_coverage(findings, lab, runs)


def readings(trial):
    """{stage: Reading} of the stages that a run printed, the lowest of those of one name. Figures without bits per byte
    count only where no stage has them: a loss may be of anything."""
    log, stream, found = trial.log, trial.stream, {}
    if stream is None:
        return found
    stages = [one for one in log.stages if one.bpb is not None] or [one for one in log.stages if one.nats is not None]
    each = float(stream.bytes_N.mean())
    for one in stages:
        if not all(math.isfinite(figure) for figure in (one.nats, one.bpb) if figure is not None):
            continue
        ratio, slack = None, 0.0
        if one.nats and one.bpb and min(one.nats, one.bpb) > 1e-6:
            ratio = one.nats / math.log(2) / one.bpb
            slack = one.nats.unit / one.nats + one.bpb.unit / one.bpb
        scale = 1.0 if one.nats is not None else math.log(2) * each
        figure = one.bpb if one.nats is None else one.nats
        if one.name not in found or figure * scale < found[one.name].nats:
            found[one.name] = Reading(one.name, float(figure * scale), float(figure.unit * scale), ratio, slack)
    return found


def headline_of(trial):
    """The Reading of the score of a run."""
    found = readings(trial)
    stage = trial.log.headline
    return found[stage.name] if stage is not None and stage.name in found else list(found.values())[-1]


def below(trial, reading):
    """Nats in all by which a reading is below what any code can reach, printed digits allowed for; 0 or less: it is not."""
    tail = min(TAIL, trial.stream.targets // 8)
    return (trial.stream.floor(tail) - reading.nats - reading.unit) * trial.stream.targets


def gain(trial, name):
    """Nats a target below the entropy, by that stage or else by the lowest; negative: above it."""
    found = readings(trial)
    one = found.get(name) or min(found.values(), key=lambda other: other.nats)
    return trial.stream.entropy() - one.nats


# Running at all


def say_unusable(findings, trial):
    """Nothing was printed that could be judged."""
    boxed = trial.boxed
    how = f"stopped: limit of {boxed.stopped}" if boxed.stopped else f"exit code {boxed.code}"
    reason = f"its run on synthetic data printed no loss ({how}, {boxed.seconds:.0f} s): {boxed.last_words()}"
    lines = [line for line in boxed.output.splitlines() if line.strip()] or [""]
    last, newer = lines[-1], "SyntaxError" in lines[-1] and any(re.search(NEW_SYNTAX, line) for line in lines[-4:-1])
    if boxed.code and last.strip().startswith(EVERYWHERE) and not newer:
        findings.say("G6", False, last.strip(), "it runs", evidence=reason)
    else:
        findings.untested("G6", reason)
    say_untested(findings, [rule for rule in DYNAMIC_RULES if rule not in ("G6", "D3")], reason)


def judge_end(findings, trial):
    """G6: it starts inside its folder and ends."""
    boxed = trial.boxed
    where = f"run on {trial.label}, {boxed.seconds:.1f} s, {len(readings(trial))} stages with a loss"
    if boxed.code == 0:
        findings.say("G6", True, "exit code 0", "exit code 0", evidence=where)
    else:
        findings.untested("G6", f"{where}, but exit code {boxed.code} ({boxed.stopped}): {boxed.last_words()}")


def judge_files(findings, lab, trial):
    """A8, D2 and A2 by the order in which files were written and read."""
    read_back = trial.artifacts()
    seen = bool(trial.opened((VAL_FILE, *TRAIN_FILES)))
    written = [one for one in trial.kept if one.written is not None]
    counted = next((one for one in read_back if one.size and one.size == trial.log.model_bytes), None)
    beside = [one for one in read_back if counted and one is not counted and one.read_back > (counted.written or 0.0)]
    if beside:
        what = f"{beside[0].name} is read back after {counted.name} was written, whose size alone it prints"
        findings.untested("A8", f"{what}: which of the two is scored cannot be told")
    elif read_back:
        last = read_back[-1]
        when = "before that was seen" if last.written is None else f"{last.read_back - last.written:.2f} s later"
        findings.say("A8", True, f"{last.name} read back", "read back", evidence=f"opened again {when}")
    elif seen and written:
        findings.say("A8", False, f"{written[-1].name} never read", "read back", evidence="it scores the weights in memory")
    else:
        findings.untested("A8", "no file that could be the artifact was seen to be written")
    times = [one.written for one in read_back if one.written is not None]
    if times and seen:
        late = [one for one in trial.opened(TRAIN_FILES) if one > max(times)]
        where = f"artifact written at {max(times):.2f} s" + (f", a training shard opened at {late[0]:.2f} s" if late else "")
        findings.say("D2", not late, f"{len(late)} shards opened after", 0, evidence=where)
    else:
        findings.untested("D2", "the trace does not tell when the artifact was written")
    judge_siblings(findings, lab, trial)


def judge_siblings(findings, lab, trial):
    """A2: which files of the folder ran, and whether the code size that the run prints counts them."""
    inside = PurePosixPath("/box/work")
    paths = [PurePosixPath(one.what) for one in trial.boxed.events if one.kind in ("read", "load")]
    names = {path.relative_to(inside).as_posix() for path in paths if path.is_relative_to(inside)}
    ran = sorted(one for one in names if one in lab.originals and one.endswith(CODE_ENDINGS) and one != lab.script.name)
    sizes = {name: lab.folder.entry(name).size for name in ran}
    shown = ", ".join(f"{name} ({size:,} bytes)" for name, size in sizes.items())
    total, stated = lab.script.size + sum(sizes.values()), [size for size, _ in trial.log.code_bytes]
    if not ran:
        findings.say("A2", True, f"only {lab.script.name} ran", evidence="files of the folder that the run opened as code")
    elif any(size >= total for size in stated):
        findings.say("A2", True, max(stated), f"at least {total}", evidence=f"counted: {shown}")
    elif lab.script.size in stated:
        findings.say("A2", False, lab.script.size, total, evidence=f"ran but is not in the code size it prints: {shown}")
    else:
        judge_against_logs(findings, lab, total, shown)


def judge_against_logs(findings, lab, total, shown):
    """A2 where the run prints no code size: what ran beside the model that the folder's own logs tell of."""
    logs = [read_log(lab.folder, name) for name in lab.folder.logs()]
    model = max((log.model_bytes or 0 for log in logs), default=0)
    code = max((size for log in logs for size, _ in log.code_bytes), default=0)
    if model and 0 < code < total:
        whole, cap = model + total, findings.limit("A1")
        where = f"{total:,} bytes of code ran ({shown}); the logs count {code:,} beside a model of {model:,}"
        findings.say("A2", whole <= cap, whole, cap, 0, where)
    else:
        findings.untested("A2", f"ran: {shown}; neither the run nor a log says what it counts as code")


# What the artifact depends on


def judge_artifact(findings, lab, runs):
    """D1 and A9: whether other validation tokens give another artifact. Returns True if they do."""
    absent = runs.get("absent")
    ended = absent is not None and absent.boxed.code == 0
    without = "; it also ends without validation" if ended else "; it stops where validation is absent" if absent else ""
    others = [runs[name] for name in ("patched", "foreign") if name in runs]
    if "narrow" not in runs or not others:
        say_untested(findings, ("D1", "A9"), "no second run with other validation tokens could be had")
        return False
    first = runs["narrow"]
    names = compared_files(first, others[0])
    if not names:
        if ended and (made := [one.name for one in absent.kept]):
            findings.say("D1", True, f"{made[-1]} written", "it ends", evidence="training ended with validation absent")
        else:
            findings.untested("D1", f"no artifact to compare{without}")
        findings.untested("A9", "no artifact to compare")
        return False
    made = [digests(one) for one in (first, *others)]
    differing = [name for name in names if any(one.get(name, made[0][name]) != made[0][name] for one in made)]
    if not differing:
        where = f"{', '.join(names[:3])}: same bytes after validation on other tokens{without}"
        for rule in ("D1", "A9"):
            findings.say(rule, True, "artifact unchanged", "unchanged", evidence=where)
        return False
    again = lab.run("narrow noise again", first.law, first.stream)
    if again is None:
        say_untested(findings, ("D1", "A9"), "the artifact changes with the validation tokens, but no run could be repeated")
        return False
    stable = [name for name in differing if digests(again).get(name) == made[0][name]]
    if not stable:
        return judge_unstable(findings, first, differing, without)
    if names[0] not in stable and first.artifacts():
        reason = f"{stable[0]} depends on validation, but was written after {names[0]}, which does not, was read back"
        say_untested(findings, ("D1", "A9"), f"{reason}: it may be of the evaluation")
        return False
    where = f"{stable[0]} differs when only validation tokens differ, and is the same when they are the same{without}"
    for rule in ("D1", "A9"):
        findings.say(rule, False, f"{stable[0]} changes", "unchanged", evidence=where)
    return True


def judge_unstable(findings, trial, differing, without):
    """D1 and A9 of a script whose artifact is another in each run: by the trace alone. Returns False."""
    written = [one.written for one in trial.kept if one.name in differing and one.written is not None]
    opened = trial.opened((VAL_FILE,))
    if written and opened and min(opened) > max(written):
        where = f"not opened before {differing[0]} was written, at {max(written):.2f} s{without}"
        for rule in ("D1", "A9"):
            findings.say(rule, True, f"validation opened at {min(opened):.2f} s", "after the artifact", evidence=where)
    else:
        say_untested(findings, ("D1", "A9"), f"{differing[0]} is another in each run, also on equal data{without}")
    return False


def digests(trial):
    """{name: digest} of what a run wrote and left."""
    return {one.name: one.digest for one in trial.kept if one.digest}


def compared_files(first, second):
    """Names of files that both runs wrote and left, in the order of writing: those read back; all where there are none."""
    pool = [one for one in first.artifacts() if one.digest] or [one for one in first.kept if one.digest]
    return [one.name for one in pool if one.name in digests(second)]


# The entropy that nothing goes below


def judge_floor(findings, lab, runs, tainted):
    """C1 to C4: no stage below the entropy of the noise it scored, or which condition that breaks."""
    trials = {name: runs[name] for name in ("wide", "short", "narrow", "doubled") if name in runs}
    broken = {}
    for name, trial in trials.items():
        worst = max(readings(trial).values(), key=lambda one: below(trial, one))
        if below(trial, worst) > 0:
            broken[name] = worst
    if not broken:
        return say_above(findings, trials)
    name, worst = max(broken.items(), key=lambda one: below(trials[one[0]], one[1]))
    trial = trials[name]
    shown = {
        "measured": worst.nats,
        "expected": f"at least {trial.stream.entropy():.6f}",
        "tolerance": ONE_IN_A_MILLION / trial.stream.targets + worst.unit,
    }
    what = f"{worst.name or 'its loss'} on {trial.label} of {trial.stream.targets:,} targets"
    blamed, why = attributed(lab, runs, trials, broken, name, tainted)
    for rule in ("C1", "C2", "C3", "C4"):
        if rule in blamed:
            findings.say(rule, False, **shown, evidence=f"{what}: {why}")
        else:
            findings.untested(rule, f"{what} is below its entropy, which {' and '.join(blamed)} explains")


def say_above(findings, trials):
    """No stage is below: the conditions hold where the script comes near enough to the entropy for a leak to show."""
    over = {}
    for name, trial in trials.items():
        over[name] = -gain(trial, headline_of(trial).name) / trial.stream.entropy() if name != "doubled" else math.inf
    for rule in ("C1", "C2", "C3", "C4"):
        # Tables are warm, and so of any weight, where contexts repeat; whatever sees its own targets shows on any noise.
        fit = ["narrow"] if rule == "C2" and "narrow" in over else list(over)
        name = min(fit, key=lambda one: over[one])
        trial = trials[name]
        reading, least = headline_of(trial), trial.stream.floor()
        where = f"no stage of {len(trials)} runs is below; nearest: {reading.name} on {trial.label}"
        if over[name] <= NEAR:
            findings.say(rule, True, reading.nats, f"at least {least:.6f}", ONE_IN_A_MILLION / trial.stream.targets, where)
        else:
            findings.say(rule, None, reading.nats, f"at least {least:.6f}", "", f"{where}: too far above to tell")


def attributed(lab, runs, trials, broken, name, tainted):
    """({conditions}, why) of readings below the entropy, by what makes them go away."""
    worst = broken[name]
    if tainted:
        return ("C3",), "the artifact was made from the validation tokens before they were scored (D1)"
    trial = trials[name]
    if set(broken) == {"doubled"}:
        return ("C1",), "on independent draws it is not: it knows the token that comes after the one it scores"
    silent = without_steps(lab, trial)
    if "short" in trials and "short" not in broken:
        if silent:
            return ("C3",), "above it once optimizers do nothing while scoring: it learns before it scores"
        deficit = gain(trial, worst.name)
        why = f"fresh noise of {SHORT_TARGETS:,} targets is not, so the past is given more than all of the probability: "
        return ("C2",), f"{why}the sum over the vocabulary is about {math.exp(min(deficit, 50)):.3g} (C3, C4 less likely)"
    if "short" not in trials:
        return ("C2",), "a leak, or no distribution; no run on a short stream could be had to tell (it may be C1, C3 or C4)"
    short, long = gain(trials["short"], worst.name), gain(trials["wide"], worst.name)
    rates = f"{short:.4f} nats a target below on {SHORT_TARGETS:,} fresh targets, {long:.4f} on {TARGETS:,}"
    if short > 1.25 * long:
        why = f"{rates}: the fewer there are the better it knows them, so it has gone over them before it scores"
        return ("C3", "C4"), why
    if silent:
        return (
            "C3",
            "C1",
        ), f"{rates}; not below once optimizers do nothing while scoring: it learns a target before its score"
    if long > 1.5 * short:
        why = f"{rates}: the more past the more, as if the probabilities summed to {math.exp(min(long, 50)):.3g}"
        return ("C2",), f"{why} (C3, C4 less likely)"
    return attributed_nearby(lab, runs, trials, worst, rates)


def without_steps(lab, trial):
    """Whether a run is above the entropy again when torch optimizers do nothing from the moment on that the artifact is read
    back. False too where none steps."""
    read = [one.read_back for one in trial.artifacts()]
    if not read or not any(one.kind == "step" and one.seconds > min(read) for one in trial.boxed.events):
        return False
    silent = lab.run(f"{trial.label}, optimizers silenced", trial.law, trial.stream, silence=True)
    found = {} if silent is None else readings(silent)
    return bool(found) and all(below(silent, one) <= 0 for one in found.values())


def attributed_nearby(lab, runs, trials, worst, rates):
    """A gain that is the same on short and long streams: it comes from the target itself or from its close neighbours."""
    balanced = lab.run(
        "permutations of 16 ids", narrow_law, noise_stream(lab.alphabet, balanced_law(lab.alphabet), TARGETS, 4)
    )
    if balanced is not None and readings(balanced) and "narrow" in trials:
        left, had = gain(balanced, worst.name), gain(trials["narrow"], worst.name)
        if had - left > FITTED:
            why = f"{rates}; 16 ids cost it {had - left:.4f} nats a target more where each stretch holds each equally often"
            return ("C1", "C3"), f"{why}: it is fitted to the stretch that it scores"
    twice = lab.run("wide noise, all of it twice", wide_law, repeated_stream(lab.alphabet, wide_law, TARGETS, 8))
    if twice is not None and readings(twice) and gain(twice, worst.name) > 1.3 * gain(trials["wide"], worst.name):
        why = f"{rates}, {gain(twice, worst.name):.4f} on as many of which half repeat the other half"
        return ("C3", "C4"), f"{why}: it learns what it scores, and has gone over it before its score stands"
    most = max(gain(trial, worst.name) for trial in trials.values())
    if most <= math.log(4):
        why = f"{rates}: as if the probabilities summed to {math.exp(most):.3g}"
        return ("C2",), f"{why} (C1 if it looks at the target)"
    if "foreign" in runs and gain(runs["foreign"], worst.name) > 0:
        why = f"{rates}; so with tokens that training never had: it has learnt its targets before it scores"
        return ("C1", "C3"), why
    return ("C1",), f"{rates}: what is scored is looked at (or C3: it is learnt before its score)"


# Bytes and coverage


def judge_bytes_and_coverage(findings, lab, runs):
    """M1, M2, M7 and D7: bytes a target that nats and bpb imply, on streams whose bytes differ by place and by law, and how
    far other tokens in two tenths of the text move both."""
    trials = {name: runs[name] for name in ("wide", "narrow", "patched", "foreign") if name in runs}
    ratios = {name: headline_of(trial).bytes_each for name, trial in trials.items()}
    moved = nats_share(trials)
    if None in ratios.values():
        say_untested(findings, ("M1", "M2", "M7"), "its score is not printed both in nats and in bits per byte")
        return say_coverage(findings, lab, None, moved, "")
    measured, expected = figures(ratios), figures({name: bytes_of(trial) for name, trial in trials.items()})
    if "narrow" in trials and max(ratios.values()) / min(ratios.values()) - 1 < BYTES_OFF:
        for rule in ("M7", "M1"):
            findings.say(
                rule, False, measured, expected, BYTES_OFF, "bytes a target do not move between streams of other bytes"
            )
        findings.untested("M2", "a constant stands in place of a count (M7)")
        return say_coverage(findings, lab, None, moved, "")
    findings.say("M7", True if "narrow" in trials else None, measured, expected, evidence="bytes a target on each stream")
    share = bytes_share(trials, ratios)
    off = {name: ratios[name] / bytes_of(trial) - 1 for name, trial in trials.items()}
    wrong = [
        name for name, most in (("narrow", BYTES_OFF), ("foreign", GROSS)) if name in off and beyond(trials[name], most)
    ]
    partial, where = share is not None and not whole(lab, share), ""
    if not wrong and not partial and beyond(trials["wide"], FINE):
        partial, where = judge_another(lab, off["wide"])
        if not partial and beyond(trials["wide"], BYTES_OFF):
            wrong.append("wide")
    if not partial and "patched" in trials and beyond(trials["patched"], BYTES_OFF) and not wrong:
        wrong.append("patched")
    if wrong:
        for rule in ("M1", "M2"):
            why = f"bytes a target that nats and bpb imply are off on {', '.join(wrong)}"
            findings.say(rule, False, measured, expected, BYTES_OFF, why)
    elif partial:
        say_untested(findings, ("M1", "M2"), f"{measured}, by the table {expected}: not all targets are scored{where}")
    else:
        fine = max(headline_of(trial).slack for trial in trials.values()) <= VAGUE
        said = "bytes a target that nats and bpb imply" + ("" if fine else ", in too few digits to tell")
        findings.say("M1", True if fine else None, measured, expected, BYTES_OFF, said)
        everything = bool({"patched", "foreign"} & set(trials))
        why = "pieces, ASCII bytes and two-byte characters" if everything else "no run had characters of several bytes"
        findings.say("M2", True if everything else None, measured, expected, BYTES_OFF, why)
    say_coverage(findings, lab, share, moved, where)


def bytes_of(trial):
    """Bytes a target by the table."""
    return float(trial.stream.bytes_N.mean())


def figures(numbers):
    """Numbers by name as a text."""
    return ", ".join(f"{name} {number:.5f}" for name, number in numbers.items())


def beyond(trial, tolerance):
    """Whether implied bytes a target are off by more than a share, the printed digits and a tail that is not scored."""
    reading = headline_of(trial)
    least, most = trial.stream.bytes_each(min(TAIL, trial.stream.targets // 8))
    slack = tolerance + reading.slack
    return not least * (1 - slack) <= reading.bytes_each <= most * (1 + slack)


def judge_another(lab, off):
    """(whether, how) the bytes a target of wide noise are off by another share on another stream: then it is not how bytes
    are counted, but which targets."""
    another = noise_stream(lab.alphabet, wide_law(lab.alphabet), TARGETS, 7)
    trial = lab.run("wide noise once more", wide_law, another)
    if trial is None or not readings(trial) or not headline_of(trial).bytes_each:
        return False, ""
    other = headline_of(trial).bytes_each / bytes_of(trial) - 1
    apart = abs(other - off) > 0.3 * max(abs(other), abs(off)) and abs(other - off) > 2 * FINE
    return apart, f"; bytes a target are off by {off:+.4%} and {other:+.4%} on two streams of one law" if apart else ""


def bytes_share(trials, ratios):
    """The share of the patched tenths that was counted, by bytes: 1 when all targets count alike. None without the runs."""
    if not {"narrow", "patched"} <= set(trials):
        return None
    stream = trials["patched"].stream
    rest, patch = ratios["narrow"], float(stream.bytes_N[stream.patched_N].mean())
    if "foreign" in ratios:
        patch = ratios["foreign"]
    if abs(rest - patch) < NEAR * rest:
        return None
    return (rest - ratios["patched"]) / (rest - patch) / float(stream.patched_N.mean())


def nats_share(trials):
    """The same by nats: more than 1 for what learns other tokens while it scores them. None where it tells nothing."""
    if not {"narrow", "patched", "foreign"} <= set(trials):
        return None
    if any(below(trials[name], headline_of(trials[name])) > 0 for name in ("narrow", "foreign")):
        return None  # what it pays then is no cost of these tokens
    rest, mixed, other = (headline_of(trials[name]).nats for name in ("narrow", "patched", "foreign"))
    if other - rest < NEAR * rest:
        return None
    return (mixed - rest) / (other - rest) / float(trials["patched"].stream.patched_N.mean())


def whole(lab, share):
    """Whether that share of bytes is what full coverage gives, up to a tail of one sequence."""
    named = [str(value) for name, value in lab.script.settings.items() if "SEQ" in name.upper()]
    tail = max(min(max([int(value) for value in named if value.isdigit()], default=TAIL), TAIL), SEQUENCE)
    patched = sum(end - begin for begin, end in SPANS)
    least = (patched - tail) / (TARGETS - tail) / (patched / TARGETS)
    return least - 0.01 <= share <= 1.02


def say_coverage(findings, lab, share, moved, where):
    """D7: by bytes, which are exact, and by nats."""
    shown = {"bytes": share, "nats": moved}
    shown = ", ".join(f"{value:.3f} by {name}" for name, value in shown.items() if value is not None)
    why = f"what the score counts of two tenths of other tokens, one in the middle and one at the end{where}"
    if (share is not None and not whole(lab, share)) or (moved is not None and moved < LEAST_MOVED) or where:
        findings.say("D7", False, shown, 1, "a tail of one sequence", why)
    elif moved is None or (share is None and moved < SURELY_MOVED):  # bytes may be counted of all, nats of a part
        findings.untested("D7", f"{why}: {shown or 'no runs with other tokens that tell'}")
    else:
        findings.say("D7", True, shown, 1, "a tail of one sequence", why)
