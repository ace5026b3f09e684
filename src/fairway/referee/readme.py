"""The README of a submission: its headline and its tables of seeds, held against the logs."""

import re
from dataclasses import dataclass, field
from statistics import mean

from .agree import agrees, byte_figures, matches, other_stage, series, unless_missing
from .logs import Printed

MOST_README, MOST_CELLS = 2 << 20, 20_000
OTHER_RUN = (
    r"(?i)delta|Δ|\bvs\b|baseline|sota|previous|prior|\bbase\b|parent|reference|record|\bgain|\bdiff|change|#\d+|\bgap"
    r"|\bold\b"
)
HEADLINE_TEXT = r"(?i)val[_ ]?bpb\W{0,8}(\d\.\d{2,12})(?!\d)"
CELL_NUMBER = r"^[*_`~≈ ]*([-+]?\d[\d,]*(?:\.\d+)?)\s*(ms|s|sec|MB|MiB|KB|B|bytes|M)?[*_` ]*$"


@dataclass(eq=False)
class Readme:
    """`headline`: the first figure given as val_bpb near the top (Printed, or None) and its `line`; `tables`: those with a
    column of seeds, [(which column, header, rows)]."""

    name: str
    headline: Printed | None = None
    line: int = 0
    tables: list = field(default_factory=list)

    def seeds(self):
        """The seeds that its tables have rows for."""
        cells = [row[at] for at, _, body in self.tables for row in body if at < len(row)]
        return [seed for seed in map(seed_of, cells) if seed is not None]


def read_readme(name, text):
    """The Readme of a text."""
    readme, lines, table, cells = Readme(name), text.splitlines(), [], 0
    for number, line in enumerate([*lines, ""], 1):
        line = line.strip()[:4000]
        found = re.search(HEADLINE_TEXT, line) if readme.headline is None and number <= 15 else None
        if found and not re.search(OTHER_RUN, re.sub(r"(?i)^\W*record\b|#", "", line[: found.start()])):
            readme.headline, readme.line = Printed(found[1]), number
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
    """G4: the README's headline and its tables of seeds. `claims`: with its `readme`."""
    readme = claims.readme
    if readme.headline is not None:
        how = matches(readme.headline, [log.headline.bpb for log in logs])
        other = None if how else other_stage(readme.headline, logs, "bpb")
        holds = unless_missing(None if how == "subset" else bool(how or (other and not other[1])), logs, claims)
        shown = f"{mean(float(log.headline.bpb) for log in logs):.8g} over {len(logs)} logs"
        evidence = f"{readme.name}:{readme.line}: {how or (other and other[0]) or 'no log shows it'}"
        findings.say("G4", holds, readme.headline.text, shown, readme.headline.unit, evidence)
    by_seed = {log.seed: log for log in logs}
    for at, header, body in readme.tables:
        rows = [(by_seed[seed_of(row[at])], row) for row in body if at < len(row) and seed_of(row[at]) in by_seed]
        means = [row for row in body if at < len(row) and re.search(r"(?i)mean|average|avg", row[at])]
        means = means if set(readme.seeds()) <= set(by_seed) else []
        for column, title in enumerate(header):
            if column != at and rows:
                judge_column(findings, folder, claims, title, rows_at(rows, column), cell_at(means, column))


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


def judge_column(findings, folder, claims, title, rows, average):
    """G4 for one column: the stage, or the count, whose figures it shows for most seeds must be shown for all."""
    readme = claims.readme
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
    if not hits[best] and not related(title, best):
        return findings.untested("G4", f"{readme.name}, column {title!r}: no log shows these figures")
    if wrong:
        shown = "; ".join(f"seed {log.seed}: {number.text}" for log, number, _ in wrong)
        return findings.say("G4", False, shown, "; ".join(str(figure) for _, _, figure in wrong), wrong[0][1].unit, where)
    middle = mean(float(figure) for _, _, figure in rows)
    unit = max((figure.unit for _, _, figure in rows if isinstance(figure, Printed)), default=0.0)
    if average is not None and len(rows) > 1 and not agrees(average, middle, unit):
        return findings.say("G4", False, f"mean {average.text}", f"{middle:.8g}", average.unit, where)
    findings.say("G4", True, "; ".join(number.text for _, number, _ in rows), "", rows[0][1].unit, where)


def column_figures(folder, claims, title, logs, rows):
    """{what a column may show: {log's name: figure}}, by its title and the size of its numbers."""
    low = title.lower()
    digits = all(0 < number < 20 and number.unit <= 0.001 for _, number in rows)
    whole = all(number.unit >= 1 for _, number in rows)
    if digits and not re.search(r"time|sec|\bms\b|std", low):
        kinds = (
            ("nats",)
            if re.search(r"loss|nats|nll", low)
            else ("bpb",)
            if re.search(r"bpb|bpp|bits", low)
            else ("bpb", "nats")
        )
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
        names = [log.name for log in logs]
        found = {
            f"bytes ({at})": dict(zip(names, column, strict=True)) for at, column in enumerate(zip(*totals, strict=False))
        }
        return found | {
            f"code ({at})": dict(zip(names, column, strict=True)) for at, column in enumerate(zip(*codes, strict=False))
        }
    return {"parameters": {log.name: log.parameters for log in logs}} if "param" in low and whole else {}


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
