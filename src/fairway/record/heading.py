"""The report's head and its tables of runs: what was reached, whether it holds, where it comes from. Texts throughout."""

import shlex

from ..problem import Problem
from ..referee.rules import OVERSHOOT, read_policy
from ..referee.stated import CONTEST, on_contest_machine
from ..runfolder import PACKED, PROGRAM
from .compare import compare
from .figures import page_table
from .lineage import lineage_of
from .measured import faults_of, score_faults
from .quote import span_text
from .table import cut_short
from .verdicts import verdict_rows

HASHES = (("recipe", "recipe_hash"), ("code", "source_hash"), ("data", "data_hash"), ("tokenizer", "tokenizer_sha256"))
SHOWN_CHANGES = 4  # of a recipe against its parent, in the line below its figure; all are in the section of the recipe


def own_faults(ones):
    """{folder: what does not agree} of the runs that do not agree with themselves: the files of packed ones, the score."""
    found = {}
    for one in ones:
        faults = faults_of(one) if (one.folder / PACKED).is_file() else score_faults(one) if one.score else []
        if faults:
            found[one.folder] = faults[0]
    return found


def group_facts(name, runs, faults):
    """Runs of one recipe, with mean, deviation and interval of those that are scored; "stats" is None, and "fault" says
    why, where none is, or where one does not agree with itself (`faults` of `own_faults`)."""
    scored = [one for one in runs if one.bpb is not None and one.score]
    stats, fault = None, "no run has a score of its own yet: `fairway score RUN` makes it"
    wrong = [f"{one.folder}: {faults[one.folder]}" for one in scored if one.folder in faults]
    if wrong:
        fault = wrong[0]
    elif scored:
        try:
            stats, fault = compare([one.folder for one in scored], (), ())["runs"], None
        except Problem as problem:
            fault = str(problem)
    return {
        "name": name,
        "label": name,
        "runs": runs,
        "scored": scored,
        "stats": stats,
        "fault": fault,
        "measured": measured_where(runs),
        "changes": changes_text(runs[0]),
    }


def changes_text(one):
    """How a run's recipe differs from its parent, in a line; "" where it does not, has none, or cannot be read."""
    try:
        lineage = lineage_of(one)
    except Problem:
        return ""
    texts = [f"{row['path']} {cut_short(row['from'], 40)} → {cut_short(row['to'], 40)}" for row in lineage["changes"]]
    more = f" and {len(texts) - SHOWN_CHANGES} more" if len(texts) > SHOWN_CHANGES else ""
    return f"{lineage['parent']} with {', '.join(texts[:SHOWN_CHANGES])}{more}" if texts else ""


def measured_where(runs):
    """Where a figure comes from, in a line: device, steps, tokens, software; several values where runs differ."""
    found = [run_facts(one, one.name) for one in runs]
    parts = (("device", ""), ("steps", " steps"), ("tokens", " tokens"), ("parameters", " parameters"), ("torch", ""))
    texts = [" and ".join(dict.fromkeys(facts[key] for facts in found if facts[key])) + unit for key, unit in parts]
    return "; ".join(text for text, (_, unit) in zip(texts, parts, strict=True) if text != unit)


def run_facts(one, name):
    """One run as the page's tables have it, texts; "" for what is not there yet."""
    run = one.run

    def text(value, form):
        return "" if value is None else format(value, form)

    return {
        "name": name,
        "seed": str(one.seed),
        "bpb": text(one.bpb, ".6f"),
        "weights": text(run.get("bpb", {}).get("weights"), ".6f"),
        "bytes": text(one.total_bytes, ","),
        "artifact_seconds": text(one.artifact_seconds, ".1f"),
        "score_seconds": text(one.score_seconds, ".1f"),
        "steps": text(run.get("steps"), ","),
        "tokens": text(run.get("tokens"), ","),
        "parameters": text(run.get("parameters"), ","),
        "device": f"{run.get('device', '')}" + (f", {run['world_size']} ranks" if run.get("world_size", 1) > 1 else ""),
        "software": ", ".join(f"{key} {value}" for key, value in software_of(run).items()),
        "began": run.get("began", "").replace("T", " ").replace("+00:00", " UTC"),
        "torch": f"torch {run['torch']}" if "torch" in run else "",
        "recipe": run.get("recipe", ""),
        "hashes": {name: run[key] for name, key in HASHES if key in run} | run.get("sha256", {}),
        "remarks": [*run.get("averages", ()), *run.get("qat", ())],
        "normalised": (one.score or {}).get("normalised", True),
        "commands": commands_of(one),
    }  # fmt: skip


def software_of(run):
    """{package: version} of what a run was made with, as far as it says so."""
    return {key: run[key] for key in ("fairway", "torch") if key in run} | run.get("versions", {})


def commands_of(one):
    """Commands that make a run again, stage by stage, from its recipe.py."""
    ranks, run = one.run.get("world_size", 1), shlex.quote(one.folder.resolve().name)
    begin = f"torchrun --nproc-per-node {ranks} -m fairway" if ranks > 1 else "fairway"
    data = shlex.quote(one.run.get("data", "").rstrip("/").rpartition("/")[2] or "DATA")
    # Raw bytes need another encoding than Python's own, which the file's first line names.
    program = one.folder / PROGRAM
    raw = " --raw" if program.is_file() and program.read_bytes().startswith(b"#coding") else ""
    return [
        f"{begin} train {run}/recipe.py --data {data} --out again --seed {one.seed}",
        f"{begin} pack again{raw}",
        f"{begin} score again --keep-nats",
        "fairway audit again",
    ]


def comparison_tiles(comparison):
    """[tile] of a comparison that could be made, or []."""
    if not comparison or comparison["fault"]:
        return []
    found = comparison["found"]
    delta = found["delta"]["bpb"]
    state = "untested" if found["noise"] else "pass" if delta < 0 else "fail"
    better = "better" if delta < 0 else "worse"
    about = found["noise"] or f"95 % {span_text(found['interval'], 4, '+')}, {found['test']}; {better}"
    return [tile("Difference", f"{delta:+.4f} bpb", f"from {found['against']['name']}: {about}", state)]


def audit_tile(audit):
    """The verdicts in one line. Without a FAIL, what is not audited keeps it from being a pass."""
    counts = audit["counts"]
    if not audit["runs"]:
        return tile("Audit", "not audited", "no verdict of any run", "untested")
    about = f"{counts['PASS']} PASS, {counts['NOT TESTED']} NOT TESTED in {len(audit['runs'])} run" + "s" * (
        len(audit["runs"]) > 1
    )
    if audit["unaudited"]:
        about += f"; {len(audit['unaudited'])} not audited"
    state = "fail" if counts["FAIL"] else "untested" if audit["unaudited"] else "pass"
    return tile("Audit", f"{counts['FAIL']} FAIL", about, state)


def limit_tiles(ones, names):
    """Bytes and seconds of the run that comes nearest to each limit. Over a limit of seconds is a FAIL where an audit says
    so; under it is a pass where all runs are of the contest's machine, which the limit is for; else nothing was tested."""
    policy, found = read_policy(), []
    limits = (
        ("Bytes", "", ("A1",), [one.total_bytes for one in ones], 0, "code and model"),
        ("Training", " s", ("T1", "T2"), [one.artifact_seconds for one in ones], OVERSHOOT, "with calibration"),
        ("Scoring", " s", ("T4",), [one.score_seconds for one in ones], OVERSHOOT, "the pass that is the score"),
    )
    for name, unit, rules, values, slack, about in limits:
        known = [(value, run) for value, run in zip(values, names, strict=True) if value is not None]
        if not known:
            found.append(tile(name, "not measured", about, "untested"))
            continue
        limit, (value, run) = policy.rules[rules[0]].default, max(known)
        most = f"most of {len(known)} runs, {run}" if len(known) > 1 else run
        failed = any(row["rule"] in rules and row["verdict"] == "FAIL" for one in ones for row in verdict_rows(one))
        there = all(on_contest_machine(one.run) for one, own in zip(ones, values, strict=True) if own is not None)
        within = value <= limit + slack
        good = "pass" if within and (there or not unit) else "untested" if unit else "fail"
        state = "fail" if failed else good
        over = f"; {value - limit:,.{1 if unit else 0}f}{unit} over" if not within else ""
        note = over + (f"; the limit is for {CONTEST}" if state == "untested" else "")
        text = f"{value:,.1f}{unit}" if unit else f"{value:,}"
        found.append(tile(name, text, f"of {limit:,.0f}{unit}, {about} ({most}){note}", state, min(1.0, value / limit)))
    return found


def tile(name, value, about, state, share=None):
    """A figure of the page's head; `state`: pass, fail or untested; `share` of a limit, or None."""
    return {"name": name, "value": value, "about": about, "state": state, "share": share}


def runs_table(runs):
    """The figures of each run in a line, of what any run has."""
    columns = {
        "seed": "seed", "bpb": "bpb", "bpb of the weights": "weights", "bytes": "bytes", "training s": "artifact_seconds",
        "scoring s": "score_seconds", "steps": "steps", "tokens": "tokens", "parameters": "parameters", "device": "device",
    }  # fmt: skip
    columns = {name: key for name, key in columns.items() if any(run[key] for run in runs)}
    return page_table(("run", *columns), [[run["name"], *(run[key] for key in columns.values())] for run in runs])


def hash_table(runs):
    """Every hash once, with the runs that have it: what differs between runs stands in several lines."""
    found = with_holders([(run["name"], item) for run in runs for item in run["hashes"].items()], len(runs))
    order = list(dict.fromkeys(what for (what, _), _ in found))
    rows = sorted(found, key=lambda row: order.index(row[0][0]))
    return page_table(("of", "runs", "hash"), [(what, names, digits) for (what, digits), names in rows])


def with_holders(pairs, runs):
    """[(thing, names of the runs that have it)] of (name, thing), each thing once; "all" where it is all `runs`."""
    holders = {}
    for name, thing in pairs:
        holders.setdefault(thing, []).append(name)
    return [(thing, "all" if len(names) == runs else ", ".join(names)) for thing, names in holders.items()]


def origin_table(runs):
    """When, where and with what each run was made."""
    columns = "recipe", "began", "device", "software"
    return page_table(("run", *columns), [[run["name"], *(run[key] for key in columns)] for run in runs])
