"""What tests of sweeps share: the command as a function, plans and objectives that train nothing."""

from contextlib import nullcontext

from fairway.cli import SweepCommand
from fairway.terminal import Terminal
from fairway.trials.space import read_space
from fairway.trials.study import Board
from fairway.trials.sweep import (
    SweepPlan,
    sweep,
)
from train.tiny import SETTINGS, tiny

RATE = "optim.Muon.rate=0.003..0.1:log"
SILENT = Terminal(quiet=True)


def command(data, out, **changes):
    about = {"name": "demo", "data": data, "out": out, "over": (), "steps": 12, "trials": 3, "seed": 5}
    return SweepCommand(**(about | changes))


def run(data, out, *over, settings=SETTINGS, terminal=SILENT, **changes):
    return sweep(command(data, out, **changes), over or (RATE,), settings, terminal)


def space_of(*over, settings=()):
    return read_space(over, lambda some: tiny(*settings, *some))


class Notes:
    """A terminal that keeps what is said."""

    quiet = False

    def __init__(self):
        self.lines = []

    def note(self, line):
        self.lines.append(line)

    def progress(self, title):
        return nullcontext(lambda *_: None)


def plan_in(out, *over, **changes):
    """A plan whose trials need not be trained."""
    out.mkdir(exist_ok=True)
    about = {
        "name": "demo", "data": out, "out": out, "recipe": tiny(), "dataset": None, "space": space_of(*(over or (RATE,))),
        "settings": (), "seed": 5, "trials": 4, "steps": 81, "tokens": None, "factor": 3, "rungs": (3, 9, 27),
    }  # fmt: skip
    return SweepPlan(**(about | changes))


def board_in(out):
    return Board(f"sqlite:///{out / 'sweep.db'}")


def climbing(curves, seen):
    """An objective that reports the losses of a curve for each trial; what was asked of it is kept in `seen`."""

    def objective(number, values, judge):
        for spent in (3, 9, 27):
            seen.append((number, spent))
            judge(spent, curves(number, values) / spent, spent, 81)
        return {"bpb": curves(number, values), "loss": curves(number, values) / 81, "steps": 81}

    return objective
