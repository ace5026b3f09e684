"""submission.json: keys and types as public ones have them, every figure from run folders, every promise from audits."""

import math
from statistics import mean, stdev

from ..referee.margins import lacks_spread, margin_readings, t_test
from ..referee.rules import read_policy
from ..referee.seeds import better_by
from ..referee.verdict import FAIL, NOT_TESTED, PASS
from ..runfolder import PACKED, PROGRAM
from .lineage import credits_of, lineage_of
from .log import log_name

# What submissions declare, and the rules that prove it where every audit passes them. Other public keys (no_slot, no_etlb,
# no_ngram_cache) say that a technique is absent, which no rule measures: they are left out.
LEARNING = "score_first_ttt"  # says something of a recipe that learns while it scores, and nothing of another
PROVEN_BY = {
    "train_under_600s": ("T1", "T2"),
    "eval_under_600s": ("T4",),
    "artifact_under_16mb": ("A1",),
    LEARNING: ("C3",),
    "no_pre_quant_ttt": ("D1", "A9"),
}


def submission_of(runs, about, record, log_hashes, exceptions):
    """submission.json's content.

    `runs`: scored Measureds, the first being the one whose model.bin ships; `about`: name, author, github, blurb, track;
    `record`: bpb of a record or of its seeds; `log_hashes`: {name of a log: SHA-256}; `exceptions`: texts. bpb are bits per
    byte, val_loss nats a token; spreads are sample deviations; bytes_total, wallclock_seconds and eval_time_seconds are
    the worst seed's. A key that nothing measured is absent.
    """
    first, run = runs[0], runs[0].run
    bpb, nats = [rounded(one.bpb) for one in runs], [rounded(one.nats_per_token) for one in runs]
    found = {
        "author": about["author"], "github_id": about["github"], "name": about["name"],
        "blurb": about["blurb"] or own_words(first), "date": max(one.run.get("began") or "" for one in runs) or None,
        "track": about["track"], "val_bpb": rounded(mean(bpb)), "val_bpb_std": spread(bpb),
        "val_loss": rounded(mean(nats)), "val_loss_std": spread(nats), "bytes_total": max(one.total_bytes for one in runs),
        "bytes_code": first.ledger["files"][PROGRAM],
        "artifact_bytes_mean": round(mean(one.total_bytes for one in runs)),
        "artifact_bytes_max": max(one.total_bytes for one in runs), "seeds": [one.seed for one in runs],
        "seed_results": {str(one.seed): seed_result(one, log_hashes[log_name(one)]) for one in runs},
        "hardware": "; ".join(dict.fromkeys(map(hardware, runs))), "pytorch_version": run["torch"],
        "pre_quant_val_bpb": pre_quant(runs), "wallclock_seconds": round(max(one.train_seconds for one in runs), 3),
        "eval_time_seconds": round(max(one.score_seconds for one in runs), 3),
        "step_stop": round(mean(one.run["steps"] for one in runs)), "train_gpt_sha256": run["sha256"][PROGRAM],
        "recipe_hash": run["recipe_hash"], "data_hash": run["data_hash"], "source_hash": run.get("source_hash"),
        "technique_summary": technique_summary(first.recipe()),
        "compliance": compliance_of(runs), **against_record(runs, record), "exceptions": list(exceptions) or None,
    }  # fmt: skip
    return {key: value for key, value in found.items() if value is not None}


def seed_result(one, log_hash):
    """A seed's figures: seconds of training and of the scored pass, hashes of its log and of its model.bin."""
    return {
        "val_bpb": rounded(one.bpb), "val_loss": rounded(one.nats_per_token), "artifact_bytes": one.total_bytes,
        "steps": one.run["steps"], "train_seconds": round(one.train_seconds, 3), "eval_seconds": round(one.score_seconds, 3),
        "log_sha256": log_hash, "model_sha256": one.run["sha256"][PACKED],
    }  # fmt: skip


def rounded(value):
    """A figure to the digits of the logs."""
    return round(value, 8)


def spread(values):
    """Sample standard deviation, or None of one value."""
    return rounded(stdev(values)) if len(values) > 1 else None


def pre_quant(runs):
    """Mean bpb of the trained weights, or None where a seed has none."""
    found = [one.run["bpb"].get("weights") for one in runs]
    return None if None in found else rounded(mean(found))


def hardware(one):
    """The devices that a run was trained on."""
    device, ranks = one.run["device"], one.run["world_size"]
    return device if ranks == 1 and device.startswith("cpu") else f"{ranks}x {device}"


def technique_summary(recipe):
    """The names of the recipe's techniques."""
    return " + ".join(one["name"] for one in credits_of(recipe))


def own_words(one):
    """What a submission is where its author does not say: the recipe's name, what it amends, its techniques."""
    lineage = lineage_of(one)
    amended = f", amended in {len(lineage['changes'])} fields" if lineage["changes"] else ""
    return f"Recipe {lineage['recipe']}{amended}: {technique_summary(one.recipe())}."


def verdict_on(audit, rule):
    """An audit's verdict on a rule: FAIL where a part failed, PASS where all parts passed, else NOT TESTED."""
    found = {row["verdict"] for row in (audit or {}).get("verdicts", ()) if row["rule"] == rule}
    return FAIL if FAIL in found else PASS if found == {PASS} else NOT_TESTED


def compliance_of(runs):
    """{public key: bool}: true where every audit passes all its rules, false where one fails; absent where not tested."""
    found = {}
    for key, rules in PROVEN_BY.items():
        if key == LEARNING and not any(one.recipe().adapt for one in runs):
            continue
        verdicts = {verdict_on(one.audit, rule) for one in runs for rule in rules}
        if NOT_TESTED not in verdicts or FAIL in verdicts:
            found[key] = FAIL not in verdicts
    return found | {"three_seeds": len({one.seed for one in runs}) >= read_policy().limit("S2")}


def against_record(runs, record):
    """{record_val_bpb, t_statistic, p_value, margin} of a one-sided test that the mean is below the record: one-sample
    against one figure, Welch's against several. {} without a record; no test of one seed, or without a spread.

    `margin`: under each reading of the contest's 0.005 nats, the gain in bpb that it asks for and the p-value that the gain
    exceeds it.
    """
    if not record:
        return {}
    own, record = [rounded(one.bpb) for one in runs], list(record)
    told = {"record_val_bpb": record[0] if len(record) == 1 else record}
    if len(own) < 2 or lacks_spread(own, record):
        return told
    ratios = [rounded(one.nats_per_token) / math.log(2) / rounded(one.bpb) for one in runs]
    readings = margin_readings(read_policy().limit("S1"), mean(ratios))
    return {
        **told,
        "t_statistic": float(t_test(own, record).statistic),
        "p_value": better_by(own, record, 0.0),
        "margin": {
            unit.replace(" a ", "_per_"): {"bpb": bpb, "p_value": better_by(own, record, bpb)}
            for unit, bpb in readings.items()
        },
    }
