"""Seeds: whether there are three, whether all ran one configuration, and how likely the margin to a record is luck."""

import math
import re
from statistics import mean, stdev

from .agree import seed_logs
from .margins import RECORD_CHANCE, lacks_spread, margin_readings, t_test

# What two runs of one configuration may well print differently before they train.
PER_RUN = (
    r"seed|run|id|uuid|path|dir|file|files|log|logs|name|date|timestamp|time|elapsed|host|hostname|node|port|addr|address|url|pid|rank"
    r"|gpu|gpus|device|memory|mem|free|driver|version|commit|user|step|ms|temp|temperature|power|loss|bpb|cache|duration|eta"
)
NUMBER_OR_SWITCH = r"(?i)[-+]?\d[\d,_.]*(?:e[-+]?\d+)?|true|false|none"
COUNTED = ("model_params", "parameters", "num_params", "total_params", "world_size", "train_shards", "val_tokens", "tokens")
TELLING_DIGITS = 1e-6  # figures with so many digits are never equal by chance


def judge_seeds(findings, logs, claims, record_bpb=None):
    """S1, S2, S3 and, for claimed seeds without a log, G1. `record_bpb`: the record's bpb, or those of its seeds."""
    chosen = seed_logs(logs, claims)
    seeds = [log.seed for log in chosen if log.seed is not None]
    if chosen:
        judge_number(findings, chosen, seeds, claims)
        judge_missing(findings, logs, claims)
        judge_named(findings, logs, claims)
    if len(chosen) > 1:
        judge_one_configuration(findings, chosen)
    if record_bpb is not None and chosen:
        judge_margin(findings, chosen, record_bpb)


def judge_number(findings, logs, seeds, claims):
    """S2: how many seeds have a log of their own."""
    wanted = findings.limit("S2")
    evidence = ", ".join(f"{log.name} (seed {log.seed})" for log in logs)
    named = f"; {claims.name} names {claims.seeds}" if claims.seeds else ""
    findings.say("S2", len(set(seeds)) >= wanted, len(set(seeds)), f"at least {wanted}", "", f"{evidence}{named}")


def judge_missing(findings, logs, claims):
    """G1: each seed that submission.json names has its log."""
    there = {log.seed for log in logs}
    missing = [seed for seed in claims.seeds if seed not in there]
    if missing and None not in there:
        findings.say(
            "G1", False, sorted(there), claims.seeds, "", f"{claims.name} names seed {missing[0]}, of which there is no log"
        )
    elif missing:
        findings.untested("G1", f"{claims.name} names seed {missing[0]}; some logs do not say their seed")


def judge_named(findings, logs, claims):
    """S3: a log that is named for a seed is that seed's. A number that is no seed of the folder may count the runs."""
    known = {*claims.seeds, *(log.seed for log in logs)}
    for log in logs:
        found = re.findall(r"(?i)seed[_-]?(\d{1,9})(?!\d)", log.name)
        told = {log.settings.get("seed"), str(log.seed)}
        if found and log.seed is not None and found[-1] not in told:
            holds = False if int(found[-1]) in known - {log.seed} else None
            findings.say("S3", holds, log.seed, int(found[-1]), 0, f"{log.name} is of another seed than its name says")


def judge_one_configuration(findings, logs):
    """S3: parameters, ranks, code and settings are the same for all seeds, and no two logs are one run."""
    before = len(findings.rows)
    facts = (
        ("parameters", "parameters", [log.parameters for log in logs]),
        ("world_size", "ranks", [log.world_size for log in logs]),
        ("train_shards", "training shards", [log.train_shards for log in logs]),
        ("val_tokens", "validation tokens", [log.val_tokens for log in logs]),
        ("code_bytes", "bytes of code", [log.code_bytes[-1][0] if log.code_bytes else None for log in logs]),
    )
    for key, what, values in facts:
        if len({value for value in values if value is not None}) > 1:
            shown = {log.at(key): value for log, value in zip(logs, values, strict=True)}
            findings.say("S3", False, shown, "the same for all seeds", 0, f"{what} differ")
    judge_same_settings(findings, logs)
    judge_copies(findings, logs)
    if len(findings.rows) == before:
        same = [what for _, what, values in facts if sum(value is not None for value in values) > 1]
        shared = len(comparable_settings(logs))
        if same or shared:
            seen = f"{', '.join(same)} and {shared} settings are the same in {', '.join(log.name for log in logs)}"
            findings.say("S3", True, [log.seed for log in logs], "one configuration", 0, seen)
        else:
            findings.untested("S3", "the logs print nothing of their configuration")


def comparable_settings(logs):
    """{setting: [(log, value)]} of those that several logs print as a number or a switch, none of a run's own."""
    found = {}
    for log in logs:
        for name, value in log.settings.items():
            own = re.search(rf"(?:^|[_\W])(?:{PER_RUN})(?:$|[_\W])", name.lower())
            if not own and name not in COUNTED and re.fullmatch(NUMBER_OR_SWITCH, value):
                found.setdefault(name, []).append((log.name, value))
    seeds = {log.name: str(log.seed) for log in logs}
    return {
        name: values
        for name, values in found.items()
        if len(values) > 1 and not all(value == seeds[log] for log, value in values)  # the seed under another name
    }


def judge_same_settings(findings, logs):
    """S3: settings that differ between the logs."""
    apart = {name: dict(rows) for name, rows in comparable_settings(logs).items() if len({value for _, value in rows}) > 1}
    if apart:
        shown = {name: apart[name] for name in sorted(apart)[:8]}
        findings.say("S3", False, shown, "the same for all seeds", 0, f"{len(apart)} settings differ")


def judge_copies(findings, logs):
    """S3: two seeds whose figures are equal to the last digit are one run."""
    for at, one in enumerate(logs):
        for other in logs[at + 1 :]:
            if equal_runs(one, other):
                figures = f"{one.headline.bpb.text} bpb"
                evidence = f"{one.name} and {other.name} print the same figures: one run under two names"
                findings.say("S3", False, figures, "runs of their own", 0, evidence)


def equal_runs(one, other):
    """Whether two logs are of one run: the score is equal in many digits, or is equal and so are time, steps and model."""
    pairs = [(one.headline.bpb, other.headline.bpb), (one.headline.nats, other.headline.nats)]
    known = [(left, right) for left, right in pairs if left is not None and right is not None]
    if any(left.text != right.text for left, right in known):
        return False
    if any(left.unit <= TELLING_DIGITS for left, _ in known):
        return True
    facts = [(log.train_seconds, log.steps, log.model_bytes) for log in (one, other)]
    return None not in facts[0] and facts[0] == facts[1]


def judge_margin(findings, logs, record_bpb):
    """S1: the one-sided p-value that the mean is better than the record by the margin, under three readings of its unit.

    `record_bpb`: one figure (one-sample t-test), or those of the record's seeds (Welch's t-test).
    """
    own = [float(log.headline.bpb) for log in logs]
    record = [float(one) for one in record_bpb] if isinstance(record_bpb, (list, tuple)) else [float(record_bpb)]
    if len(own) < 2:
        return findings.untested("S1", f"one log: {own[0]:.6f} bpb against {mean(record):.6f} has no spread to judge by")
    margin, ratios = findings.limit("S1"), []
    for log in logs:
        if log.headline.nats is not None:
            ratios.append(float(log.headline.nats) / math.log(2) / float(log.headline.bpb))
    margins = margin_readings(margin, mean(ratios) if ratios else None)
    chances = {unit: better_by(own, record, bpb) for unit, bpb in margins.items()}
    shown = {unit: f"p = {chances[unit]:.2g} for {bpb:.5f} bpb" for unit, bpb in margins.items()}
    holds = all(chance < RECORD_CHANCE for chance in chances.values())
    gained = f"{mean(own):.6f} bpb (sd {stdev(own):.6f}, {len(own)} seeds), {mean(record) - mean(own):+.6f} better"
    split = len({chance < RECORD_CHANCE for chance in chances.values()}) > 1
    reason = "the unit decides" if split else "under all readings of the unit"
    findings.say("S1", None if split else holds, shown, f"p < {RECORD_CHANCE:g}", f"{margin:g} nats", f"{gained}; {reason}")


def better_by(own, record, margin):
    """The one-sided p-value of `own`, two figures or more, lying below `record` by more than `margin`, all in bpb."""
    if lacks_spread(own, record):
        return 0.0 if mean(own) + margin < mean(record) else 1.0
    return float(t_test(own, record, margin).pvalue)
