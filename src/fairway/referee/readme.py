"""The README of a submission: its headline and its tables of seeds, held against the logs."""

import re
from dataclasses import dataclass, field
from statistics import mean, pstdev, stdev

from .agree import agrees, byte_figures, clock_of, matches, other_stage, seconds_of, series, unless_missing
from .logs import Printed

MOST_README, MOST_CELLS = 2 << 20, 20_000
OTHER_RUN = (
    r"(?i)delta|Δ|\bvs\b|baseline|sota|previous|prior|\bbase\b|parent|reference|record|\bgain|\bdiff|change|#\d+|\bgap"
    r"|\bold\b"
)
HEADLINE_TEXT = r"(?i)val[_ ]?bpb\W{0,8}(\d\.\d{2,12})(?!\d)"
CELL_NUMBER = r"^[*_`~≈ ]*([-+]?\d[\d,]*(?:\.\d+)?)\s*(ms|s|sec|MB|MiB|KB|B|bytes|M)?[*_` ]*$"


# What the first lines say beside the score, by the contest's custom.
SECOND_LINE = r"(?i)^\*\*val[_ ]?bpb\b"
SAID_COUNT = r"(?i)(?<![\w.])(\d+)-seed mean"
SAID_STD = r"(?i)(?:\bstd\W{1,3}|±\s*)(\d?\.\d{3,12})(?!\d)"
SAID_MEGABYTES = r"(?<![~≈<≤\d.])(\d+\.\d+) ?MB\b"
FILE_HASH = r"`([\w.-]+\.\w+)`\W{0,6}([0-9a-fA-F]{64})(?!\w)"
FILE_SEED = r"`([\w.-]+\.\w+)`[^`|.]{0,40}?\bseed (\d{1,9})\b"


@dataclass(eq=False)
class Readme:
    """`heads`: [(line, text, figure)] of the first figure given as val_bpb near the top, and of the next line that begins
    with one; `tables`: those with a column of seeds, [(which column, header, rows)]; `hashes`: [(file, SHA-256)] and
    `owners`: [(file, seed)], where a line tells the hash of a file, or whose it is."""

    name: str
    heads: list = field(default_factory=list)
    tables: list = field(default_factory=list)
    hashes: list = field(default_factory=list)
    owners: list = field(default_factory=list)

    def seeds(self):
        """The seeds that its tables have rows for."""
        cells = [row[at] for at, _, body in self.tables for row in body if at < len(row)]
        return [seed for seed in map(seed_of, cells) if seed is not None]


def read_readme(name, text):
    """The Readme of a text."""
    readme, lines, table, cells = Readme(name), text.splitlines(), [], 0
    for number, line in enumerate([*lines, ""], 1):
        line = line.strip()[:4000]
        first = number <= 15 and (not readme.heads or (len(readme.heads) == 1 and re.search(SECOND_LINE, line)))
        found = re.search(HEADLINE_TEXT, line) if first else None
        if found and not re.search(OTHER_RUN, re.sub(r"(?i)^\W*record\b|#", "", line[: found.start()])):
            readme.heads.append((number, line, Printed(found[1])))
        if "`" in line and number <= MOST_CELLS:
            readme.hashes += re.findall(FILE_HASH, line)
            readme.owners += [(name, int(seed)) for name, seed in re.findall(FILE_SEED, line)]
        if line.startswith("|") and cells < MOST_CELLS:
            row = [cell.strip() for cell in line.strip("|").split("|")]
            cells += len(row)
            table.append(row)
        elif table:
            _take_table(readme, table)
            table = []
    return readme


def _take_table(readme, table):
    """Keeps a table that has a column, or a row, of seeds."""
    rows = [row for row in table if not all(re.fullmatch(r":?-+:?|", cell) for cell in row)]
    if len(rows) < 2:
        return
    if sum(seed_of(cell, named=True) is not None for cell in rows[0][1:]) >= 2:
        width = len(rows[0])
        rows = [[row[at] if at < len(row) else "" for row in rows] for at in range(width)]
        rows[0][0] = "seed"
    header, body = rows[0], rows[1:]
    at = next((at for at, cell in enumerate(header) if re.search(r"(?i)\bseed", cell)), None)
    if at is not None:
        readme.tables.append((at, header, body))


def seed_of(cell, named=False):
    """The seed that a cell of a table names, or None. `named`: only where it says so in words."""
    found = re.fullmatch(r"(?i)[*_` ]*(seed\s*[=:#]?\s*)?(\d{1,9})[*_` ]*(?:\(.{0,40}\))?[*_` ]*", cell)
    return int(found[2]) if found and (found[1] or not named) else None


def judge_readme(findings, folder, logs, claims):
    """G4: the README's first lines and its tables of seeds. `claims`: with its `readme`."""
    readme = claims.readme
    for line, text, figure in readme.heads:
        judge_head(findings, folder, logs, claims, (f"{readme.name}:{line}", text, figure))
    judge_rows_of_seeds(findings, logs, claims)
    by_seed = {log.seed: log for log in logs}
    for at, header, body in readme.tables:
        rows = [(by_seed[seed_of(row[at])], row) for row in body if at < len(row) and seed_of(row[at]) in by_seed]
        means = [row for row in body if at < len(row) and re.search(r"(?i)mean|average|avg", row[at])]
        spreads = [row for row in body if at < len(row) and re.fullmatch(r"(?i)\W*(?:std|sd|stdev)\W*(?:dev\W*)?", row[at])]
        means, spreads = (means, spreads) if set(readme.seeds()) <= set(by_seed) else ([], [])
        for column, title in enumerate(header):
            if column != at and rows:
                ends = cell_at(means, column), cell_at(spreads, column)
                judge_column(findings, folder, claims, title, rows_at(rows, column), ends)


def judge_head(findings, folder, logs, claims, head):
    """G4 for one of the first lines: bpb, and the seeds, spread and bytes beside it. `head`: (where, text, bpb)."""
    where, text, figure = head
    measured = [log.headline.bpb for log in logs]
    how = matches(figure, measured)
    other = None if how else other_stage(figure, logs, "bpb")
    holds = unless_missing(None if how == "subset" else bool(how or (other and not other[1])), logs, claims)
    shown = f"{mean(map(float, measured)):.8g} over {len(logs)} logs"
    evidence = f"{where}: {how or (other and other[0]) or 'no log shows it'}"
    findings.say("G4", holds, figure.text, shown, figure.unit, evidence)
    counted, spread, size = (re.search(pattern, text) for pattern in (SAID_COUNT, SAID_STD, SAID_MEGABYTES))
    if counted and set(claims.seeds) == {log.seed for log in logs}:
        findings.say("G4", int(counted[1]) == len(logs), f"{counted[1]}-seed mean", len(logs), 0, f"{where}: logs")
    if spread and len(logs) > 1 and how == "mean":
        holds = unless_missing(is_spread(Printed(spread[1]), measured), logs, claims)
        findings.say("G4", holds, spread[1], f"{stdev(map(float, measured)):.6g}", "", f"{where}: std over {len(logs)} logs")
    if size and any(log.total_bytes or log.model_bytes for log in logs):
        columns = zip(*(byte_figures(folder, log, claims)[0] for log in logs), strict=False)
        sums = [[one / unit for one in column if one] for column in columns for unit in (1e6, 1 << 20)]
        holds = unless_missing(any(matches(Printed(size[1]), column) in ("mean", "a seed") for column in sums), logs, claims)
        findings.say("G4", holds, f"{size[1]} MB", sums[0], Printed(size[1]).unit, f"{where}: bytes of the logs")


def is_spread(claimed, figures):
    """Whether a figure is the deviation of figures, of a sample (n - 1) or of all (n)."""
    unit = max((one.unit for one in figures if isinstance(one, Printed)), default=0.0)
    return any(agrees(claimed, spread(map(float, figures)), unit) for spread in (stdev, pstdev))


def judge_rows_of_seeds(findings, logs, claims):
    """G4: where submission.json and the logs name the same seeds, a table of as many rows has no other one."""
    seeds = {log.seed for log in logs}
    for at, _, body in claims.readme.tables if seeds == set(claims.seeds) else ():
        rows = {seed_of(row[at]) for row in body if at < len(row)} - {None}
        if len(rows) == len(seeds) and len(rows & seeds) == len(seeds) - 1 > 0:
            shown, where = sorted(rows), f"{claims.readme.name}: the seeds of a table"
            findings.say("G4", False, shown, sorted(seeds), 0, where)


def rows_at(rows, column):
    """[(log, Printed)] of a column's numbers."""
    cells = [(log, cell_number(row[column])) for log, row in rows if column < len(row)]
    return [(log, number) for log, number in cells if number is not None]


def cell_at(means, column):
    """The number in the row of means, or None."""
    return cell_number(means[0][column]) if means and column < len(means[0]) else None


def cell_number(cell):
    """The number of a table's cell as Printed; None for words, and for megabytes, which are rounded for people."""
    found = re.match(CELL_NUMBER, cell)
    return Printed(found[1]) if found and found[2] in (None, "ms", "s", "sec", "bytes", "B") and "~" not in cell else None


def judge_column(findings, folder, claims, title, rows, ends):
    """G4 for one column: the stage, or the count, whose figures it shows for most seeds must be shown for all. `ends`: what
    it gives as their mean and deviation, or None."""
    readme, (average, spread) = claims.readme, ends
    if not rows or re.search(OTHER_RUN, title):
        return
    known = column_figures(folder, claims, title, [log for log, _ in rows], rows)
    known = {name: figures for name, figures in known.items() if any(figures.get(log.name) is not None for log, _ in rows)}
    hits = {name: sum(hit(number, figures.get(log.name)) for log, number in rows) for name, figures in known.items()}
    best = max(known, key=lambda name: (hits[name], related(title, name)), default=None)
    if best is None:
        return
    rows = [(log, number, known[best][log.name]) for log, number in rows if known[best].get(log.name) is not None]
    wrong = [(log, number, figure) for log, number, figure in rows if not hit(number, figure)]
    where = f"{readme.name}, column {title!r}, against {best}"
    if (not hits[best] and not related(title, best)) or (clock_of(title) and 2 * hits[best] <= len(rows)):
        return findings.untested("G4", f"{readme.name}, column {title!r}: no log shows these figures")
    if wrong:
        shown = "; ".join(f"seed {log.seed}: {number.text}" for log, number, _ in wrong)
        return findings.say("G4", False, shown, "; ".join(str(figure) for _, _, figure in wrong), wrong[0][1].unit, where)
    middle = mean(float(figure) for _, _, figure in rows)
    unit = max((figure.unit for _, _, figure in rows if isinstance(figure, Printed)), default=0.0)
    if average is not None and len(rows) > 1 and not agrees(average, middle, unit):
        return findings.say("G4", False, f"mean {average.text}", f"{middle:.8g}", average.unit, where)
    if spread is not None and len(rows) > 1 and not is_spread(spread, [figure for *_, figure in rows]):
        return findings.say("G4", False, f"std {spread.text}", [figure for *_, figure in rows], spread.unit, where)
    findings.say("G4", True, "; ".join(number.text for _, number, _ in rows), "", rows[0][1].unit, where)


def column_figures(folder, claims, title, logs, rows):
    """{what a column may show: {log's name: figure}}, by its title and the size of its numbers."""
    low = title.lower()
    if clock_of(title):
        columns = zip(*(seconds_of(title, log) for log in logs), strict=False)
        return {f"{clock_of(title)} seconds ({at})": by_log(logs, column) for at, column in enumerate(columns)}
    digits = all(0 < number < 20 and number.unit <= 0.001 for _, number in rows)
    whole = all(number.unit >= 1 for _, number in rows)
    if digits and not re.search(r"time|sec|\bms\b|std", low):
        kinds = ("nats",) if re.search(r"loss|nats|nll", low) else ("bpb", "nats")
        kinds = ("bpb",) if re.search(r"bpb|bpp|bits", low) and len(kinds) > 1 else kinds
        found = {f"{name} ({kind})": stages_of(stages, kind) for name, stages in series(logs).items() for kind in kinds}
        during = {log.name: [stage for stage in log.stages if stage.during] for log in logs}
        last = {name: stages[-1] for name, stages in during.items() if stages}
        return found | {f"last validation in training ({kind})": stages_of(last, kind) for kind in kinds}
    if re.search(r"\bms\b|ms/|/step|step_avg|avg", low):
        return {"step_avg": {log.name: log.step_ms for log in logs}}
    if re.search(r"\bsteps?\b", low) and whole:
        return {"steps": {log.name: log.steps for log in logs}}
    if re.search(r"bytes|artifact|size|model|total|code", low) and whole and all(number > 10_000 for _, number in rows):
        totals, codes = zip(*(byte_figures(folder, log, claims) for log in logs), strict=True)
        found = {f"bytes ({at})": by_log(logs, column) for at, column in enumerate(zip(*totals, strict=False))}
        return found | {f"code ({at})": by_log(logs, column) for at, column in enumerate(zip(*codes, strict=False))}
    return {"parameters": {log.name: log.parameters for log in logs}} if "param" in low and whole else {}


def by_log(logs, column):
    """{log's name: figure} of figures in the order of the logs."""
    return {log.name: figure for log, figure in zip(logs, column, strict=True)}


def stages_of(stages, kind):
    """{log's name: nats or bpb} of {log's name: stage}."""
    return {name: getattr(stage, kind) for name, stage in stages.items()}


def hit(number, figure):
    """Whether a cell shows a figure that a log has."""
    return figure is not None and agrees(number, figure)


def related(title, name):
    """Whether a column's title names what it is held against: they share a word, or the title says no more than bpb."""
    plain = ("val", "bpb", "bpp", "final", "exact", "loss", "nats", "score", "mean", "the", "result", "eval", "last", "in")

    def words(text):
        text = re.sub(r"(?<=[a-z])-(?=[a-z])", "", text.lower())
        return {word for word in re.split(r"[^a-z0-9]+", text) if len(word) > 1 and word not in plain}

    own, other = words(title), words(name)
    return not own or any(a.startswith(b) or b.startswith(a) for a in own for b in other if min(len(a), len(b)) > 2)
