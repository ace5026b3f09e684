"""Verdicts: PASS, FAIL or NOT TESTED, each with what was measured, what was expected and what says so."""

from pathlib import Path

PASS, FAIL, NOT_TESTED = "PASS", "FAIL", "NOT TESTED"
TO_JUDGE = "for people to judge"


class Findings:
    """Collects verdicts under a Policy. Rules that nobody has spoken of are NOT TESTED, with their own reason.

    A rule may be spoken of several times (a seed each, a probe each); people read all of it.
    """

    def __init__(self, policy):
        self.policy, self.rows = policy, []

    def limit(self, rule):
        """What the rule is held to: see Policy.limit."""
        return self.policy.limit(rule)

    def say(self, rule, holds, measured, expected="", tolerance="", evidence=""):
        """A verdict on the rule of that id: `holds` True, False, or None where it could not be told.

        `measured`, `expected` and `tolerance` are numbers or short texts; `evidence` says where it was seen, or why not.
        What breaks a rule of severity "judge" or "record" is NOT TESTED: a program cannot rule on it.
        """
        known = self.policy.rules[rule]
        verdict = NOT_TESTED if holds is None else PASS if holds else FAIL
        if verdict == FAIL and known.severity != "fail":
            verdict, evidence = NOT_TESTED, f"{TO_JUDGE}: {evidence}".rstrip(": ")
        self.rows.append(
            {
                "rule": rule, "condition": known.condition, "severity": known.severity, "verdict": verdict,
                "measured": plain(measured), "expected": plain(expected), "tolerance": plain(tolerance),
                "evidence": printable(evidence), "source": known.source,
            }
        )  # fmt: skip

    def untested(self, rule, reason):
        """The rule could not be tested, and why."""
        self.say(rule, None, "", evidence=reason)

    def failed(self, rule):
        """Whether something broke the rule."""
        return any(row["rule"] == rule and row["verdict"] == FAIL for row in self.rows)

    def as_json(self, desk):
        """{policy, verdicts, summary}: every rule that the desk ("audit", "review") looks at, in the order of the rules."""
        spoken = {row["rule"] for row in self.rows}
        for rule in self.policy.rules.values():
            if rule.id not in spoken and rule.desk in (None, desk):
                self.untested(rule.id, rule.untested)
        place = {name: at for at, name in enumerate(self.policy.rules)}
        rows = sorted(self.rows, key=lambda row: place[row["rule"]])
        counts = {word: sum(row["verdict"] == word for row in rows) for word in (PASS, FAIL, NOT_TESTED)}
        summary = {"pass": counts[PASS], "fail": counts[FAIL], "not_tested": counts[NOT_TESTED]}
        return {"policy": self.policy.name, "verdicts": rows, "summary": summary}


def plain(value):
    """A JSON-able figure: numbers, texts that are safe to print, and lists and dictionaries of them."""
    if isinstance(value, dict):
        return {printable(str(key)): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    return value if isinstance(value, (bool, int)) or value is None else printable(str(value))


def printable(text, longest=600):
    """A text of strangers on one line: control characters written out, cut where it is too long."""
    safe = "".join(c if c.isprintable() else " " if c in "\n\t" else repr(c)[1:-1] for c in text[: longest + 1])
    return safe if len(text) <= longest else safe[:longest] + "..."


def show_with(as_markdown, folder):
    """The function that shows a report: as a table, or as Markdown."""
    if as_markdown:
        return lambda report: print(markdown(report, f"Referee on {Path(folder).name}"))
    return print_report


def print_report(report):
    """The verdicts as a table: failures first, then what was not tested, then what passed."""
    rows = [
        (row["verdict"], row["rule"], row["condition"].partition(":")[0], shown(row))
        for word in (FAIL, NOT_TESTED, PASS)
        for row in report["verdicts"]
        if row["verdict"] == word
    ]
    for row in rows:
        print(f"{row[0]:<10}  {row[1]:<3}  {row[2]}: {row[3]}")
    print(f"\n{summary_line(report)}")


def shown(row):
    """Measured, expected, tolerance and evidence of a verdict in one sentence."""
    parts = [figure(row["measured"])]
    if row["expected"] != "":
        parts.append(f"expected {figure(row['expected'])}")
    if row["tolerance"] != "":
        parts.append(f"within {figure(row['tolerance'])}")
    parts.append(row["evidence"])
    return "; ".join(part for part in parts if part)


def figure(value):
    """A number with thousands marked, a text, or several of them."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {figure(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(figure, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.8g}"


def summary_line(report):
    """How many verdicts of each kind, and under which policy."""
    counts = report["summary"]
    return f"{counts['fail']} FAIL, {counts['pass']} PASS, {counts['not_tested']} NOT TESTED under policy {report['policy']}"


def markdown(report, title):
    """The report as Markdown to paste: the summary, then one table row a verdict."""

    def cell(text):
        text = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'").replace("@", "@\u200b")
        return text.replace("[", "\\[")  # no links, no pictures from elsewhere

    lines = [
        f"### {cell(printable(title))}",
        "",
        f"**{summary_line(report)}**",
        "",
        "| verdict | rule | condition | finding |",
        "|---|---|---|---|",
    ]
    for word in (FAIL, NOT_TESTED, PASS):
        rows = [row for row in report["verdicts"] if row["verdict"] == word]
        lines += [f"| {word} | {row['rule']} | {cell(row['condition'])} | {cell(shown(row))} |" for row in rows]
    return "\n".join(lines)
