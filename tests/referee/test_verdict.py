"""Rules as data, verdicts, and how they are shown."""

import json

import pytest

from fairway.problem import Problem
from fairway.referee.rules import read_policy
from fairway.referee.verdict import FAIL, NOT_TESTED, PASS, Findings, markdown, print_report, printable


def test_every_rule_says_what_it_asks_whence_and_what_would_test_it():
    for rule in read_policy().rules.values():
        assert rule.severity in ("fail", "judge", "record") and rule.condition and rule.source and rule.untested
        assert rule.desk in (None, "audit", "review")


def test_policies_differ_in_their_switches_alone():
    practised, strict = read_policy("as-practised"), read_policy("strict")
    assert practised.rules == strict.rules
    assert practised.switches.keys() == strict.switches.keys() == {"code_bytes", "clock", "epochs", "bos_mask"}
    used = {rule.switch for rule in strict.rules.values()} - {None}
    assert used == strict.switches.keys()
    assert all(practised.switches[name] != strict.switches[name] for name in used)
    assert (practised.limit("E3"), strict.limit("E3"), strict.limit("A1")) == (10, 3, 16_000_000)


def test_an_unknown_policy_is_refused_with_the_known_ones():
    with pytest.raises(Problem, match="no policy 'kind': there are as-practised, strict"):
        read_policy("kind")


def report_of(*rows, desk="review"):
    findings = Findings(read_policy())
    for row in rows:
        findings.say(*row)
    return findings.as_json(desk)


def test_rules_that_nobody_spoke_of_are_not_tested_with_their_own_reason():
    report = report_of(("A1", True, 15_000_000, 16_000_000, 0, "two files"))
    rows = {row["rule"]: row for row in report["verdicts"]}
    assert rows["A1"]["verdict"] == PASS and rows["C2"]["verdict"] == NOT_TESTED
    assert "scoring has not been run" in rows["C2"]["evidence"]
    assert rows.keys() == {rule.id for rule in read_policy().rules.values() if rule.desk != "audit"}
    assert report["summary"] == {"pass": 1, "fail": 0, "not_tested": len(rows) - 1}
    assert not {"G1", "S2"} & {row["rule"] for row in report_of(desk="audit")["verdicts"]}


def test_what_a_program_cannot_rule_on_is_measured_but_never_failed():
    row = report_of(("S1", False, 0.003, 0.005, 0, "margin"))["verdicts"]
    (row,) = [one for one in row if one["rule"] == "S1"]
    assert (row["verdict"], row["measured"]) == (NOT_TESTED, 0.003) and row["evidence"].startswith("for people to judge")
    assert Findings(read_policy()).failed("A1") is False


def test_words_of_strangers_reach_no_terminal_and_no_markdown_raw(capsys):
    report = report_of(("G7", False, "a\x1b[2J|b`<script>@team\u202e![x](//y)", float("nan"), 0, "x" * 2000))
    print_report(report)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\u202e" not in out and "\\x1b[2J" in out and "1 FAIL" in out
    text = markdown(report, "their `folder` | \n name")
    assert "<script>" not in text and "@team" not in text and "a\\\\x1b\\[2J\\|b" in text and "![" not in text
    assert all(line.count("|") - line.count("\\|") == 5 for line in text.splitlines() if line.startswith("| FAIL"))
    assert len(printable("y" * 5000)) < 700
    json.dumps(report, allow_nan=False)
    assert report["verdicts"][-1]["rule"] == "G7" and report["summary"]["fail"] == 1


def test_failures_are_shown_first(capsys):
    print_report(report_of(("A1", True, 1), ("C2", False, 2.5, 1.0)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(FAIL) and "2.5; expected 1" in lines[0] and lines[-3].startswith(PASS)
