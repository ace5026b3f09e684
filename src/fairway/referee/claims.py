"""What a folder says of itself: submission.json, read without trust, and whether the logs say the same."""

import json
import re
from dataclasses import dataclass, field
from statistics import mean, pstdev, stdev

from .agree import CODE_KEYS, agrees, byte_figures, clock_of, matches, other_stage, seconds_of, seed_logs, unless_missing
from .folder import standing_for
from .logs import COMPARED, Printed, distinct_stages, eval_seconds
from .margins import lacks_spread, margin_readings, t_test
from .readme import MOST_README, Readme, is_spread, judge_readme, read_readme, related
from .rules import OVERSHOOT
from .sums import bytes_per_token

MOST_JSON = 1 << 20
SEED_KEYS = ("seed_results", "seeds", "results", "per_seed", "seed_runs", "runs")
BPB_KEYS = ("val_bpb", "bpb", "val_bpb_mean", "mean_val_bpb")
NATS_KEYS = ("val_loss", "val_loss_mean", "mean_val_loss", "loss", "nats")
TOTAL_KEYS = (
    "bytes_total",
    "total_bytes",
    "artifact_bytes",
    "artifact_bytes_mean",
    "artifact_bytes_max",
    "submission_bytes",
)
STEP_KEYS = ("steps", "step_stop", "steps_mean")
GITHUB_KEYS = ("github_id", "github", "github_username", "github_user", "github_handle")


@dataclass(eq=False)
class Claims:
    """`values`: submission.json's keys (numbers as Printed); `name`: its file, or None; `faults`: what is wrong with it.

    `seeds`: seeds that it names; `results`: {seed: {key: value}}; `readme`: a Readme, or None.
    """

    values: dict = field(default_factory=dict)
    name: str | None = None
    faults: list = field(default_factory=list)
    seeds: list = field(default_factory=list)
    results: dict = field(default_factory=dict)
    readme: Readme | None = None


def read_claims(folder):
    """The Claims of a folder. Whatever is broken is a fault, never an error."""
    claims = Claims()
    stated, told = standing_for(folder, "submission.json"), standing_for(folder, "README.md")
    if stated and stated.kind == "file":
        claims.name = stated.name
        _read_submission(claims, folder.text(stated.name, MOST_JSON))
    if told and told.kind == "file":
        claims.readme = read_readme(told.name, folder.text(told.name, MOST_README))
    return claims


def _read_submission(claims, text):
    def whole(digits):
        if len(digits) > 18:
            claims.faults.append(f"a number of {len(digits)} digits")
            return None
        return Printed(digits)

    def constant(word):
        claims.faults.append(f"{word}, which is no JSON number")

    def pairs(items):
        twice = {key for key, _ in items if sum(key == other for other, _ in items) > 1} if len(items) < 2000 else set()
        claims.faults.extend(f"the key {key!r} stands twice" for key in sorted(twice)[:5])
        return dict(items)

    try:
        values = json.loads(text, parse_float=Printed, parse_int=whole, parse_constant=constant, object_pairs_hook=pairs)
    except RecursionError:
        claims.faults.append("nested too deeply")
        return
    except ValueError as error:
        claims.faults.append(f"not JSON: {error}")
        return
    if not isinstance(values, dict):
        claims.faults.append(f"a {type(values).__name__}, not an object")
        return
    claims.values = values
    for key in SEED_KEYS:
        _take_seeds(claims, values.get(key))


def _take_seeds(claims, value):
    """Seeds, and results of each, from a list of numbers, a list of objects or an object by seed."""
    rows = value.items() if isinstance(value, dict) else [(None, one) for one in value] if isinstance(value, list) else []
    for key, row in rows:
        named = row.get("seed") if isinstance(row, dict) and "seed" in row else key if key is not None else row
        found = re.fullmatch(r"(?:seed[_ -]?)?(\d{1,9})", named.text if isinstance(named, Printed) else str(named), re.I)
        if found is None:
            continue
        seed = int(found[1])
        if seed not in claims.seeds:
            claims.seeds.append(seed)
        if isinstance(row, dict):
            claims.results.setdefault(seed, {}).update(row)
        elif key is not None and isinstance(row, Printed):
            claims.results.setdefault(seed, {}).setdefault("val_bpb", row)


def judge_claims(findings, folder, logs, claims):
    """G2, G3, G4 and S8: what the folder says of itself against what its logs print."""
    if claims.name:
        judge_keys(findings, claims)
    logs = seed_logs(logs, claims)
    if claims.values and logs:
        judge_headline(findings, logs, claims)
        judge_means(findings, logs, claims)
        judge_bytes_claimed(findings, folder, logs, claims)
        judge_seed_results(findings, folder, logs, claims)
        judge_other_stages(findings, logs, claims)
        judge_seconds(findings, logs, claims)
        judge_chance(findings, logs, claims)
        judge_promises(findings, logs, claims)
    if claims.readme and logs:
        judge_readme(findings, folder, logs, claims)


def judge_keys(findings, claims):
    """G2: the keys that the README asks for, of the right kind."""
    values, missing = claims.values, list(claims.faults)
    bpb = next((values[key] for key in BPB_KEYS if key in values), None)
    if not isinstance(bpb, Printed):
        missing.append("val_bpb is no number" if bpb is not None or "val_bpb" in values else "no val_bpb")
    elif not 0 < bpb < 100:
        missing.append(f"val_bpb is {bpb.text}")
    if not any(isinstance(values.get(key), (str, Printed)) and str(values[key]).strip() for key in ("name", "author")):
        missing.append("no name and no author")
    if not any(isinstance(values.get(key), (str, Printed)) and str(values[key]).strip() for key in GITHUB_KEYS):
        missing.append("no github_id")
    asked = "author or name, github_id, val_bpb"
    findings.say("G2", not missing, "; ".join(missing[:8]) or "there, and of the right kind", asked, "", claims.name)
    absent = [key for key in ("author", "github_id", "name", "date") if key not in values]
    if absent and not missing:
        findings.untested("G2", f"{claims.name}: no {', '.join(absent)}, which most submissions have")


def judge_headline(findings, logs, claims):
    """S8 and G3: the val_bpb of submission.json is the mean, or a seed's, of the stage that scores."""
    key = next((key for key in BPB_KEYS if isinstance(claims.values.get(key), Printed)), None)
    if key is None:
        return
    claimed, where = claims.values[key], f"{claims.name} {key}"
    measured = [log.headline.bpb for log in logs]
    shown = f"{mean(map(float, measured)):.8g} over {len(logs)} logs"
    stages = f"last stage of each log: {', '.join(sorted({log.headline.name for log in logs}))}"
    how, other = matches(claimed, measured), other_stage(claimed, logs, "bpb")
    if how == "subset":
        holds, why = None, "the mean of some of the logs only"
    elif how:
        holds, why = True, f"{how} of the {stages}"
    elif other and not other[1]:
        holds, why = True, f"of the stage {other[0]}, not the {stages}"
    else:
        holds = unless_missing(False, logs, claims)
        why = f"of {other[0]}, which is no score of the artifact; {stages}" if other else stages
        why += "; a log is missing" if holds is None else ""
    for rule in ("G3", "S8"):
        findings.say(rule, holds, claimed.text, shown, claimed.unit, f"{where}: {why}")


def judge_means(findings, logs, claims):
    """G3: val_loss, spreads and steps."""
    nats = [log.headline.nats for log in logs]
    for key in NATS_KEYS:
        claimed = claims.values.get(key)
        if isinstance(claimed, Printed) and any(one is not None for one in nats):
            how = matches(claimed, nats) or (other_stage(claimed, logs, "nats") and "another stage")
            shown = f"{mean(float(one) for one in nats if one is not None):.8g}"
            holds = unless_missing(None if how in ("subset", "another stage") else how is not None, logs, claims)
            findings.say("G3", holds, claimed.text, shown, claimed.unit, f"{claims.name} {key}: {how or 'of no log'}")
    spreads = (("val_bpb_std", [log.headline.bpb for log in logs]), ("val_loss_std", nats))
    for key, figures in spreads:
        claimed, figures = claims.values.get(key), [one for one in figures if one is not None]
        if isinstance(claimed, Printed) and len(figures) > 1:
            holds = unless_missing(is_spread(claimed, figures), logs, claims)
            shown = f"{stdev(map(float, figures)):.6g} (n - 1) or {pstdev(map(float, figures)):.6g} (n)"
            findings.say("G3", holds, claimed.text, shown, claimed.unit, f"{claims.name} {key} over {len(figures)} logs")
    steps = [log.steps for log in logs if log.steps]
    for key in STEP_KEYS:
        claimed = claims.values.get(key)
        if isinstance(claimed, Printed) and steps:
            how = matches(claimed, steps)
            holds = unless_missing(None if how == "subset" else how is not None, logs, claims)
            findings.say("G3", holds, claimed.text, steps, claimed.unit, f"{claims.name} {key}: {how or 'of no log'}")


def judge_bytes_claimed(findings, folder, logs, claims):
    """G3: bytes in all and bytes of code."""
    figures = [byte_figures(folder, log, claims) for log in logs]
    columns = list(zip(*(totals for totals, _ in figures), strict=False))
    for key in TOTAL_KEYS:
        claimed = claims.values.get(key)
        if isinstance(claimed, Printed) and any(log.total_bytes or log.model_bytes for log in logs):
            known = [[one for one in column if one] for column in columns]
            if key.endswith(("_mean", "_max")):
                known = [[mean(column) if key.endswith("_mean") else max(column)] for column in known if column]
            holds = unless_missing(any(matches(claimed, column) in ("mean", "a seed") for column in known), logs, claims)
            shown = [log.total_bytes or log.model_bytes for log in logs]
            findings.say("G3", holds, claimed.text, shown, claimed.unit, f"{claims.name} {key}: totals of the logs")
    for key in CODE_KEYS:
        claimed = claims.values.get(key)
        own = [int(claimed)] if isinstance(claimed, Printed) else []
        sizes = {size for log in logs for size, _ in log.code_bytes} | {log.compressed_code_bytes for log in logs}
        sizes |= {log.total_bytes - log.model_bytes for log in logs if log.total_bytes and log.model_bytes}
        sizes |= {entry.size for entry in folder.entries if entry.kind == "file" and entry.name.endswith(".py")}
        sizes -= {None}
        if own and sizes:
            holds = any(agrees(claimed, size) for size in sizes)
            findings.say(
                "G3", holds, claimed.text, sorted(sizes), claimed.unit, f"{claims.name} {key}: in logs and on the disk"
            )


def judge_seed_results(findings, folder, logs, claims):
    """G3: what submission.json says of each seed."""
    for log in logs:
        row, wrong, right = claims.results.get(log.seed, {}), [], 0
        wanted = {"val_bpb": [stage.bpb for stage in distinct_stages(log)]}
        wanted["val_loss"] = [stage.nats for stage in distinct_stages(log)]
        wanted["bytes"], wanted["steps"] = byte_figures(folder, log, claims)[0], [log.steps]
        kinds = (BPB_KEYS, "val_bpb"), (NATS_KEYS, "val_loss"), (TOTAL_KEYS, "bytes"), (STEP_KEYS, "steps")
        for keys, kind in kinds:
            figures = [one for one in wanted[kind] if one is not None]
            for key in keys:
                claimed = row.get(key) if figures else None
                if isinstance(claimed, Printed) and any(agrees(claimed, one) for one in figures):
                    right += 1
                elif isinstance(claimed, Printed):
                    wrong.append(f"{key} {claimed.text} (the log: {figures[-1]})")
        if wrong or right:
            evidence = f"{claims.name}, seed {log.seed}, against {log.name}"
            findings.say("G3", not wrong, "; ".join(wrong) or f"{right} figures", "those of the log", "", evidence)


def judge_other_stages(findings, logs, claims):
    """G3: bpb of other stages, by keys that share a word with a stage of the logs."""
    for key, claimed in claims.values.items():
        if not isinstance(claimed, Printed) or key in BPB_KEYS or not key.endswith("_bpb") or re.search(COMPARED, key):
            continue
        stages = {stage.name: stage.bpb for log in logs for stage in distinct_stages(log) if stage.bpb is not None}
        named = {name: bpb for name, bpb in stages.items() if related(key.replace("_", " "), name)}
        if named:
            found = other_stage(claimed, logs, "bpb")
            holds = unless_missing(found is not None, logs, claims)
            where = f"{claims.name} {key}: {found[0] if found else 'of no stage'}"
            findings.say("G3", holds, claimed.text, named, claimed.unit, where)


def judge_seconds(findings, logs, claims):
    """G3: seconds of training and scoring. People's clocks differ: where most seeds' are those of the logs, all must be, and
    so must those at the head."""
    proven = set()
    for key in dict.fromkeys(key for row in claims.results.values() for key in row):
        rows = [(log, claims.results.get(log.seed, {}).get(key), seconds_of(key, log)) for log in logs]
        rows = [(log, claimed, known) for log, claimed, known in rows if isinstance(claimed, Printed) and known]
        wrong = [row for row in rows if not any(agrees(row[1], one, 0.001) for one in row[2])]
        if 2 * len(wrong) < len(rows):
            proven.add(clock_of(key))
            shown = {log.seed: claimed.text for log, claimed, _ in wrong or rows}
            expected = {log.name: known[0] for log, _, known in wrong or rows}
            findings.say("G3", not wrong, shown, expected, 0.001, f"{claims.name}, {key} of each seed")
    for key, claimed in claims.values.items():
        figures = [one for log in logs for one in seconds_of(key, log)] if isinstance(claimed, Printed) else []
        if figures:
            columns = list(zip(*(seconds_of(key, log) for log in logs), strict=False))
            known = [*figures, *map(mean, columns), *map(sum, columns)]
            holds = any(agrees(claimed, one, 0.001) for one in known) or (False if clock_of(key) in proven else None)
            shown, where = [round(one, 3) for one in figures], f"{claims.name} {key}: seconds of the logs"
            findings.say("G3", unless_missing(holds, logs, claims), claimed.text, shown, claimed.unit, where)


def judge_chance(findings, logs, claims):
    """G3: t and p of the test against the record that submission.json names, and of the margins that it reads."""
    record, own = claims.values.get("record_val_bpb"), [float(log.headline.bpb) for log in logs]
    record = [float(one) for one in (record if isinstance(record, list) else [record]) if isinstance(one, Printed)]
    if not record or len(own) < 2 or lacks_spread(own, record):
        return
    # Relative: what rounding in the logs may do.
    rough = 10 * len(own) * max(log.headline.bpb.unit for log in logs) / stdev(own)
    margins = claims.values.get("margin")
    rows = [(name, row) for name, row in margins.items() if isinstance(row, dict)] if isinstance(margins, dict) else []
    told = [
        ("", 0.0, claims.values),
        *((name, row["bpb"], row) for name, row in rows if isinstance(row.get("bpb"), Printed)),
    ]
    for name, margin, row in told:
        test = t_test(own, record, float(margin))
        wanted = {"t_statistic": [test.statistic], "p_value": [test.pvalue, 2 * min(test.pvalue, 1 - test.pvalue)]}
        if name:
            wanted["bpb"] = readings_of(findings, logs)
        for key, figures in wanted.items():
            claimed = row.get(key)
            if isinstance(claimed, Printed) and figures:
                holds = any(
                    abs(claimed - one) <= max(claimed.unit * 0.999, rough * max(abs(one), key == "t_statistic"))
                    for one in figures
                )
                where = f"{claims.name} {name} {key} against {record}, from the logs"
                findings.say("G3", unless_missing(holds, logs, claims), claimed.text, list(map(float, figures)), "", where)


def readings_of(findings, logs):
    """The margin of a record in bpb, in each reading of its unit that the logs allow."""
    ratios = [bytes_per_token(log.headline) for log in logs]
    ratios = [(low + high) / 2 for low, high in filter(None, ratios)]
    return list(margin_readings(findings.limit("S1"), mean(ratios) if ratios else None).values())


def judge_promises(findings, logs, claims):
    """G3: what submission.json declares to hold, where a log can tell."""
    said = claims.values.get("compliance")
    said = {**claims.values, **(said if isinstance(said, dict) else {})}
    seconds = [log.train_seconds for log in logs if log.train_seconds is not None]
    totals = [log.total_bytes for log in logs if log.total_bytes]
    scoring = [own for log in logs if (own := eval_seconds(log)[0]) is not None]
    cap, limit = findings.limit("A1"), findings.policy.rules["T1"].default
    checks = (
        ("three_seeds", len({log.name if log.seed is None else log.seed for log in logs}), 3, False),
        ("train_under_600s", max(seconds, default=None), limit + OVERSHOOT, True),
        ("eval_under_600s", max(scoring, default=None), limit + OVERSHOOT, True),
        ("artifact_under_16mb", max(totals, default=None), cap, True),
    )
    for key, measured, wanted, below in checks:
        if said.get(key) is True and measured is not None:
            holds = measured <= wanted if below else measured >= wanted
            expected = f"{'at most' if below else 'at least'} {wanted:g}"
            findings.say("G3", holds, measured, expected, "", f"{claims.name} declares {key}")
