"""The ledger of experiments: run folders as a table, one line each, sorted and filtered, also as CSV. Without torch."""

import csv
import io
import math
import re

from ..files import write_text
from ..problem import Problem
from ..runfolder import CHECKPOINT, fits_kind
from ..terminal import print_table
from .runfiles import glance_at, refuse_other_file, run_folders

# The columns in their order. Between bpb.weights and bpb.packed stand the other averages and the stages of the scores.
BEFORE_STAGES = ("run", "recipe", "changes", "seed", "data", "device", "steps", "bpb.weights")
AFTER_STAGES = ("bpb.packed", "bytes", "train_seconds", "score_seconds", "state", "fails", "began", "fault")
TEXT_COLUMNS = ("run", "recipe", "changes", "data", "device", "state", "began", "fault")
CHANGES_WIDTH = 60  # characters of changes that a printed line has room for
VALUE_WIDTH = 24  # of one value of a change, which may be a whole node
BROKEN_FILES = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, OSError)


def list_runs(folders, sort, where, csv_path):
    """{"runs": [row], "columns": [name]} of the run folders among and below `folders`; a row has a value for each column,
    None where there is none; `changes` is a list of texts. A broken run is a row too, which says what is wrong in `fault`.

    `sort`: a column; with a minus before it from the largest down. None comes last either way. `where`: column=value,
    column<value, column>value, all of which must hold: numbers as numbers; texts by the alphabet, with = as a part of the
    text, upper and lower case alike. `csv_path`: where the table is also written, or None. Problem for an unknown column.
    """
    if csv_path is not None:
        refuse_other_file(csv_path, f"{BEFORE_STAGES[0]},".encode(), "table of runs")
    found = run_folders(folders)
    if not found:
        raise Problem(f"no run in {', '.join(map(str, folders))}; `fairway train` makes run folders")
    rows = [runs_row(folder) for folder in found]
    between = dict.fromkeys(name for row in rows for name in row if name not in (*BEFORE_STAGES, *AFTER_STAGES))
    columns = [*BEFORE_STAGES, *between, *AFTER_STAGES]
    rows = [dict.fromkeys(columns) | row for row in rows]
    for condition in where:
        holds = condition_of(condition, columns)
        rows = [row for row in rows if holds(row)]
    rows = sorted_rows(rows, sort, columns)
    if csv_path is not None:
        write_text(csv_path, csv_text(rows, columns))
    return {"runs": rows, "columns": columns}


def runs_row(folder):
    """A run folder's line, with the columns that it has values for."""
    try:
        return {"run": str(folder), **run_cells(glance_at(folder))}
    except Problem as problem:
        fault = str(problem)
    except BROKEN_FILES as error:
        fault = f"{folder} has files that fairway did not write so ({type(error).__name__}: {error})"
    return {"run": str(folder), "state": "broken", "fault": fault}


def run_cells(one):
    """The cells of a RunFiles but for the first. ValueError for a value that is no number where one belongs."""
    run, changes = one.run, one.run.get("changes")
    averages = {f"bpb.{name}": bpb for name, bpb in run.get("bpb", {}).items() if name != "packed"}
    cells = {
        "recipe": run.get("recipe"),
        "changes": None if changes is None else change_texts(changes),
        "seed": one.seed,
        "data": run["data_hash"][:8],
        "device": run.get("device"),
        "steps": run.get("steps"),
        **averages,
        **{f"bpb.{name}": bpb for name, bpb in one.staircase},
        "bpb.packed": one.bpb,
        "bytes": one.total_bytes,
        "train_seconds": one.train_seconds,
        "score_seconds": one.score_seconds,
        "state": run_state(one),
        "fails": one.audit["summary"]["fail"] if one.audit else None,
        "began": run.get("began"),
    }
    for column, value in cells.items():
        if column != "changes" and value is not None and not fits_column(column, value):
            raise ValueError(f"{column} is {value!r:.40}")
    return cells


def fits_column(column, value):
    """Whether a value is text in a column of texts, and a number in one of numbers."""
    return fits_kind(value, str if column in TEXT_COLUMNS else float)


def run_state(one):
    """How far a run has come: training, interrupted (it left a checkpoint, which a resumed run keeps until it has ended),
    trained, packed, scored or audited."""
    if one.audit:
        return "audited"
    if one.score:
        return "scored"
    if one.ledger:
        return "packed"
    if "steps" in one.run:
        return "trained"
    return "interrupted" if (one.folder / CHECKPOINT).exists() else "training"


def change_texts(changes):
    """run.json's changes as texts, such as "train.clip 0.3->1.0"."""
    return [f"{path} {cut_short(old)}->{cut_short(new)}" for path, (old, new) in changes.items()]


def cut_short(text, width=VALUE_WIDTH):
    """A text of at most `width` characters, with dots for what is left out of its end."""
    return text if len(text) <= width else f"{text[: width - 3]}..."


def cell_text(value):
    """A cell as it is filtered and written to CSV."""
    return "; ".join(value) if isinstance(value, list) else "" if value is None else str(value)


def known_column(name, columns):
    """The name. Problem unless it is a column."""
    if name not in columns:
        raise Problem(f"no column {name!r}; there are {', '.join(columns)}")
    return name


def condition_of(condition, columns):
    """The function of a row that tells whether `condition` holds there. No condition holds of a cell without a value."""
    match = re.fullmatch(r"\s*([^=<>]+?)\s*([=<>])\s*(.*?)\s*", condition)
    if match is None:
        raise Problem(f"--where {condition!r} is none of column=text, column<number, column>number; as in 'bpb.packed<1.2'")
    column, sign, wanted = known_column(match[1], columns), match[2], match[3]
    if column not in TEXT_COLUMNS:
        try:
            number = float(wanted)
            if not math.isfinite(number):
                raise ValueError
            wanted = number
        except ValueError as error:
            raise Problem(f"--where {condition!r}: {column} is a number, {wanted!r} is none; as in {column}<1.2") from error
    else:
        wanted = wanted.lower()

    def holds(row):
        value = row[column]
        if value is None:
            return False
        value = cell_text(value).lower() if column in TEXT_COLUMNS else value
        if sign == "=":
            return wanted in value if column in TEXT_COLUMNS else value == wanted
        return value < wanted if sign == "<" else value > wanted

    return holds


def sorted_rows(rows, sort, columns):
    """The rows by a column (downwards with a minus before its name); those without a value last, of equals the first."""
    column = known_column(sort.removeprefix("-"), columns)
    there = [row for row in rows if row[column] is not None]
    there.sort(key=lambda row: row[column], reverse=sort.startswith("-"))
    return there + [row for row in rows if row[column] is None]


def csv_text(rows, columns):
    """The table as CSV, numbers in full."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([cell_text(row[column]) for column in columns] for row in rows)
    return out.getvalue().encode(errors="replace").decode()  # of a folder whose name is no UTF-8


def print_runs(result):
    """One line a run: the columns that any has a value in; changes that all share stand once, below the title."""
    rows = result["runs"]
    changed = [row["changes"] for row in rows if row["state"] != "broken"]
    alike = len(changed) > 1 and None not in changed
    shared = [text for text in changed[0] if all(text in others for others in changed)] if alike else []
    title = f"{len(rows)} run{'' if len(rows) == 1 else 's'}"
    if shared:
        title += f", all with {'; '.join(shared)}"
    told = {name for row in rows for name, value in row.items() if value is not None}
    if all(set(texts or ()) <= set(shared) for texts in changed):
        told.discard("changes")
    columns = [name for name in result["columns"] if name in told] or ["run"]
    print_table(title, columns, [[printed_cell(name, row[name], shared) for name in columns] for row in rows])


def printed_cell(column, value, shared):
    """A cell as text for the eye."""
    if value is None:
        return "-"
    if column == "changes":
        return short_changes([text for text in value if text not in shared]) or ("no other" if value else "none")
    if column.startswith("bpb."):
        return f"{value:.4f}"
    if column.endswith("seconds"):
        return f"{value:.1f}"
    if column in ("bytes", "steps"):
        return f"{value:,}"
    text = value[:16].replace("T", " ") if column == "began" else str(value)
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)  # a name may hold a line end


def short_changes(changes):
    """Changes on one line: as many as there is room for, then how many more there are."""
    taken = 1
    while taken < len(changes) and len("; ".join(changes[: taken + 1])) <= CHANGES_WIDTH:
        taken += 1
    return "; ".join(changes[:taken]) + (f" +{len(changes) - taken}" if len(changes) > taken else "")
