"""Windows of many lengths, several to a row: how documents are laid out.

B rows, T positions of a row, N slots, W windows.
"""

import numpy as np
import torch

from ..model.context import Bounds
from .batches import Batch, Collator, Cut


def pack_windows(plan, windows, rows, length, most):
    """Windows put into rows of `length` positions, and rows into batches of `rows`: a list of batches, each a list of
    rows, each an int64 array of indices into the plan, in the row's order.

    Best fit decreasing: the longest windows first, each into the row that it fills best. `most` windows at most share a
    row, so that a batch's offsets have a known length. ValueError for a window that no row can hold.
    """
    size = plan.length[windows]
    if len(size) and size.max() > length:
        raise ValueError(f"window {windows[size.argmax()]} of {size.max()} positions does not fit a row of {length}")
    packed, with_room = [], [[] for _ in range(length + 1)]  # rows by the positions that they have left
    rooms = 0  # bit r is set where with_room[r] has rows, so the best fit is the lowest bit from a window's size on
    order = np.argsort(-size, kind="stable")
    for window, need in zip(windows[order].tolist(), size[order].tolist(), strict=True):
        fitting = rooms >> need
        if fitting:
            room = need + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = length, []
            packed.append(row)
        row.append(window)
        if room > need and len(row) < most:
            with_room[room - need].append(row)
            rooms |= 1 << (room - need)
    arrays = [np.array(row, np.int64) for row in packed]
    return [arrays[at : at + rows] for at in range(0, len(arrays), rows)]


class DocumentCollator(Collator):
    """A Collator for a plan that has documents: their windows share rows."""

    def __init__(self, stream, plan, length=None):
        super().__init__(stream, plan, length)
        self.most = max(4, self.length // 64)  # windows in a row: shorter ones are rare, offsets take a little time

    def lone_counts(self):
        return (self.plan.end - self.plan.begin)[self.plan.first > 0]

    def cuts(self, windows, size):
        """Windows share rows, (size, T, T), but for those that score no more than usual with what stands before: sliding
        inside of a document, about a row long each."""
        scored = (self.plan.end - self.plan.begin)[windows]
        alone = (self.plan.first[windows] > 0) & (scored <= self.usual) & (self.usual < self.length)
        layouts = pack_windows(self.plan, windows[~alone], size, self.length, self.most)
        cuts = [Cut(np.concatenate(layout), (size, self.length, self.length), layout) for layout in layouts]
        return cuts + self._alone(windows[alone], size, self.usual)

    def build(self, cut):
        if cut.layout is None:
            return self.rows(cut.windows, *cut.shape)
        return self.packed(cut.layout, *cut.shape, cut.shape[0] * (self.most + 1))

    def packed(self, layout, rows, length, slots, windows_most):
        """A Batch whose rows hold several windows: `layout` lists at most `rows` rows, each an int64 array of windows.

        What is left of a row, and a row that is left, is a window of its own that nothing scores. `slots` times `rows` is N,
        for all rows together, `windows_most` how many windows the Bounds have room for, spare ones included. ValueError for
        what does not fit.
        """
        windows, row = np.concatenate(layout), np.repeat(np.arange(len(layout)), [len(part) for part in layout])
        start, size, first = (part[windows] for part in (self.plan.start, self.plan.length, self.plan.first))
        filled = np.bincount(row, size, minlength=rows).astype(np.int64)
        before = np.cumsum(size) - size  # positions of all windows before this one, were there no spare ones
        begin = before - (np.cumsum(filled) - filled)[row] + length * row
        spare = np.flatnonzero(filled < length)
        counts = size - first
        fits = len(filled) == rows and filled.max() <= length and counts.sum() <= rows * slots
        if not fits or len(windows) + len(spare) > windows_most:
            raise ValueError(
                f"{len(windows)} windows in {len(layout)} rows do not fit {rows} rows of {length} positions, "
                f"{windows_most} windows and {rows * slots} slots"
            )
        # Slots: the scored positions of one window after the other, then the last of them again and again.
        slot = np.minimum(np.arange(rows * slots), counts.sum() - 1)
        window = np.repeat(np.arange(len(windows)), counts)[slot]
        take = (begin + first - (np.cumsum(counts) - counts))[window] + slot
        target = take - begin[window] + start[window]
        live_N = torch.arange(rows * slots, device=self.stream.device) < int(counts.sum())
        # Spare windows join the others in the order of the positions; their length in the stream is 0.
        cuts = np.concatenate([begin, length * spare + filled[spare]])
        order = np.argsort(cuts)
        start, size = (np.concatenate([part, np.zeros_like(spare)])[order] for part in (start, size))
        offsets = np.concatenate([cuts[order], np.full(windows_most + 1 - len(cuts), rows * length)])
        offsets_W, start, size = (self.device_tensor(part) for part in (offsets, start, size))
        place_N = torch.arange(rows * length, device=self.stream.device)
        own_N = torch.searchsorted(offsets_W, place_N, right=True) - 1
        position_BT = (place_N - offsets_W[own_N]).view(rows, length)
        own_BT = own_N.view(rows, length)
        ids_BT = self.ids(start[own_BT] + position_BT, position_BT < size[own_BT])
        bounds = Bounds(position_BT, offsets_W.int(), length)
        return Batch(ids_BT, self.device_tensor(take), self.device_tensor(target), live_N, bounds)
