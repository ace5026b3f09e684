"""What is left when the budget ends is scored plainly: in windows side by side, at full length, each target once."""

import numpy as np

from .windows import DocumentPlan, NonOverlapping, WindowPlan


def plain_rest(plan, windows, length):
    """The WindowPlan for the targets of `windows` (indices into `plan`, ascending): few windows of up to `length` inputs.

    Neighbouring windows are taken together, but never across the beginning of a text (a window without context, or of
    another document).
    """
    if not len(windows):
        empty = np.zeros(0, np.int64)
        return WindowPlan(empty, empty, empty) if plan.floor is None else DocumentPlan(empty, empty, empty, empty)
    begin, end, floor = plan.begin[windows], plan.end[windows], None if plan.floor is None else plan.floor[windows]
    apart = begin[1:] != end[:-1]
    if floor is not None:
        apart |= floor[1:] != floor[:-1]
    starts, lengths, firsts, floors = [], [], [], []
    for run in np.split(np.arange(len(windows)), np.flatnonzero(apart) + 1):
        low = int(begin[run[0]])
        part = NonOverlapping(length).plan(int(end[run[-1]]) - low)
        starts.append(part.start + low)
        lengths.append(part.length)
        firsts.append(part.first)
        floors.append(np.full(len(part), low if floor is None else floor[run[0]]))
    joined = [np.concatenate(parts) for parts in (starts, lengths, firsts, floors)]
    return WindowPlan(*joined[:3]) if floor is None else DocumentPlan(*joined)
