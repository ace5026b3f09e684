"""Files of a run with a key gone or of another kind: a result or one line that says so, never another exception."""

import json
import math
import shutil

import pytest

from fairway.problem import DoesNotHold, Problem
from fairway.record import folder as record_folder
from fairway.record.compare import compare
from fairway.record.folder import write_record
from fairway.record.report import write_report
from fairway.record.table import list_runs, print_runs
from record.made_runs import ABOUT, write_seeds

GONE = object()
VALUES = (GONE, None, -1, 0, math.nan, math.inf, 1e300, "x", [], {}, [[]], [{}], {"x": "x"}, {"x": ["x"]}, True, 10**30)
FILES = ("run.json", "score.json", "ledger.json", "audit.json")
MOST_CASES = 50  # of a file, of some 400 to 700
ALL = ("recipes", "code", "data", "cap", "time", "seeds", "audit")


def places(content):
    """[keys] of all values of a JSON object, the first element of a list standing for all of them."""
    found = []
    for key, value in content.items() if isinstance(content, dict) else list(enumerate(content))[:1]:
        below = places(value) if isinstance(value, (dict, list)) else []
        found += [(key,), *((key, *rest) for rest in below)]
    return found


def spoiled(content, keys, value):
    content = json.loads(json.dumps(content))
    at = content
    for key in keys[:-1]:
        at = at[key]
    if value is GONE:
        at.pop(keys[-1])
    else:
        at[keys[-1]] = value
    return json.dumps(content)


def ends_well(do):
    try:
        do()
    except (Problem, DoesNotHold) as fault:
        assert "\n" not in str(fault)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return write_seeds(tmp_path_factory.mktemp("fuzz") / "runs")


@pytest.mark.parametrize("name", FILES)
def test_no_value_of_a_run_file_ends_in_a_traceback(runs, tmp_path, monkeypatch, name):
    monkeypatch.setattr(record_folder, "static_rows", lambda *words: [])
    path = runs[1] / name
    text = path.read_text()
    whole = json.loads(text)
    cases = [(keys, value) for keys in places(whole) for value in VALUES]
    every = max(1, len(cases) // MOST_CASES) | 1  # odd: all values have their turn
    try:
        for keys, value in cases[::every]:
            path.write_text(spoiled(whole, keys, value))
            ends_well(lambda: print_runs(list_runs([runs[0].parent], "run", (), tmp_path / "t.csv")))
            ends_well(lambda: compare(runs, (), (1.2,)))
            ends_well(lambda: write_record(runs, tmp_path / "out", ABOUT, ALL, (1.2,), True, lambda line: None))
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            ends_well(lambda: write_report(runs, (), tmp_path / "page.html"))
    finally:
        path.write_text(text)
