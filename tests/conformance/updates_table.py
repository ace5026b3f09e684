"""Every node of `fairway.optim` in one table: groups, orthogonalisers, schedules, averages, and the plain values in them.

A new node gets a row here, and one more for each field that changes what it does; `test_updates_conform.py` does the rest.
"""

from fairway.optim.adamw import AdamW
from fairway.optim.average import EMA, SWA, LastWeights
from fairway.optim.muon import Muon
from fairway.optim.orthogonal import MuonEqR, PolarExpress, Quintic, Turbo
from fairway.optim.schedule import Budget, DecaySchedule, Ramp, WarmDownFraction, WarmDownSteps

ROLES = ("matrix", "projection")  # what the groups here are given: a bank and two plain matrices
TAPER = DecaySchedule(points=((0.0, 1.0), (0.7, 1.0), (1.0, 0.5)))
DECOUPLED = DecaySchedule(points=((0, 1.0), (0.5, 0.65), (1, 1.5)), follows_rate=False)

GROUPS = (
    Muon(roles=ROLES, momentum=Ramp(0.5, 0.9, 4)),
    Muon(roles=ROLES, orthogonaliser=Turbo(), decay_last=True, decay=TAPER),
    Muon(roles=ROLES, orthogonaliser=MuonEqR(then=PolarExpress()), decay=DECOUPLED),
    AdamW(roles=ROLES, rate=0.02),
    AdamW(roles=ROLES, rate=0.02, betas=(0.7, 0.95), decay=TAPER),
    AdamW(roles=ROLES, rate=0.02, weight_decay=0.3, decay=DECOUPLED),
)
ORTHOGONALISERS = (
    Quintic(),
    Quintic(steps=3),
    PolarExpress(),
    Turbo(),
    Turbo(post_norm=False),
    MuonEqR(),
    MuonEqR(then=Turbo()),
)
SCHEDULES = (
    WarmDownSteps(),
    WarmDownSteps(steps=7),
    WarmDownSteps(steps=4500, floor=0.05),
    WarmDownFraction(),
    WarmDownFraction(fraction=1.0),
    WarmDownFraction(fraction=0.85, floor=0.1),
)
AVERAGES = (
    EMA(),
    EMA(decay=0.5),
    SWA(below=0.5, every=2),
    SWA(below=0.5, every=2, of=EMA(decay=0.8)),
    SWA(below=0.5, every=1, of=SWA(below=0.9, every=2)),
    LastWeights(),
)
PLAIN = (Budget(), Budget(steps=0, seconds=600.0, reserve=9.0), Ramp(), DecaySchedule(), TAPER, DECOUPLED)
ROWS = (*GROUPS, *ORTHOGONALISERS, *SCHEDULES, *AVERAGES, *PLAIN)
