"""Verdicts of audits as the report shows them: by rule over all runs, and by run with their evidence. Texts throughout."""

from ..referee.verdict import FAIL, NOT_TESTED, PASS, figure

LONG_TEXT = 160  # characters of a finding that are shown at once; the rest is behind a summary
LONGEST_TEXT = 4000  # characters of a finding that the page holds at all: audit.json has the rest
VERDICT_ORDER = (FAIL, NOT_TESTED, PASS)


def audit_facts(ones, names):
    """{"runs": each with its findings by verdict, "names": of these, "open" and "passed": rules with a verdict a run,
    "counts", "unaudited": names}. A rule is "passed" where it passed in all audits; a verdict of another name counts as NOT
    TESTED."""
    runs, rules, counts = [], {}, dict.fromkeys(VERDICT_ORDER, 0)
    for one, name in zip(ones, names, strict=True):
        if not one.audit:
            continue
        found = {verdict: [] for verdict in VERDICT_ORDER}
        for row in verdict_rows(one):
            verdict = row["verdict"] if row["verdict"] in found else NOT_TESTED
            found[verdict].append(finding(row))
            cells = rules.setdefault(row["rule"], {"condition": row["condition"], "worst": {}})["worst"]
            cells[name] = min(cells.get(name, verdict), verdict, key=VERDICT_ORDER.index)
            counts[verdict] += 1
        runs.append(
            {"name": name, "found": found, "policy": one.audit.get("policy", ""), "full": one.audit.get("full", False)}
        )
    audited = [run["name"] for run in runs]
    order = sorted(rules, key=lambda rule: min(map(VERDICT_ORDER.index, rules[rule]["worst"].values())))
    rows = [
        {
            "rule": rule,
            "condition": rules[rule]["condition"],
            "cells": [rules[rule]["worst"].get(name, "") for name in audited],
        }
        for rule in order
    ]
    passed = [row for row in rows if set(row["cells"]) == {PASS}]
    unaudited = [name for name in names if name not in audited]
    return {
        "runs": runs,
        "names": audited,
        "open": [row for row in rows if row not in passed],
        "passed": passed,
        "counts": counts,
        "unaudited": unaudited,
    }


def verdict_rows(one):
    """Verdicts of a run's audit, [] without one."""
    return (one.audit or {}).get("verdicts", [])


def finding(row):
    """A row of audit.json as texts; "facts" are those that it has."""
    facts = []
    for key in ("measured", "expected", "tolerance"):
        if (value := row.get(key, "")) not in ("", None):
            facts.append((key, figure(value)[:LONGEST_TEXT]))
    return {
        "rule": row["rule"], "condition": row["condition"], "evidence": row.get("evidence", "")[:LONGEST_TEXT],
        "facts": facts, "source": row.get("source", ""),
        "long": sum(len(text) for _, text in facts) + len(row.get("evidence", "")) > LONG_TEXT,
    }  # fmt: skip
