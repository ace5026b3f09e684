"""Windows laid out for forward passes. B rows, T positions of a row, N slots: scored positions, some of them spare,
S slots of a row, W windows of a batch.

A batch of one kind always has the same shape, its spare slots repeating what is there: one compiled graph serves a kind.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..model.context import Bounds


@dataclass(frozen=True, eq=False)
class Batch:
    """What one forward pass reads, and which of its positions are scored.

    ids_BT int64; where a window ends before its row does there are zeros, never the tokens that follow it in the stream.
    take_N int64: the flattened position that a slot reads. target_N int64: the target that it scores. live_N bool: False
    for spare slots. bounds: of rows that hold several windows, else None.
    """

    ids_BT: torch.Tensor
    take_N: torch.Tensor
    target_N: torch.Tensor
    live_N: torch.Tensor
    bounds: Bounds | None = None


@dataclass(frozen=True, eq=False)
class Cut:
    """What a Batch is built of: windows (int64 [W], indices into the plan), and its shape (B, T, S); N is B * S.

    `layout`: which windows share which row, a list of at most B int64 arrays; None: window b has row b to itself.
    """

    windows: np.ndarray
    shape: tuple[int, int, int]
    layout: list | None = None


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


class Collator:
    """Cuts batches out of a stream on the device: `stream` int32 [tokens], `plan` a WindowPlan of it."""

    def __init__(self, stream, plan, length=None):
        """`length`: T of every row, the plan's longest window unless given."""
        self.stream, self.plan = stream, plan
        self.length = int(plan.length.max(initial=1)) if length is None else length
        self.most = max(4, self.length // 64)  # windows in a row: shorter ones are rare, offsets take a little time
        self.usual = self._usual_slots()

    def _usual_slots(self):
        """The targets that more than half of the windows score which may have a row to themselves; else T."""
        plan = self.plan
        counts = (plan.end - plan.begin) if plan.floor is None else (plan.end - plan.begin)[plan.first > 0]
        usual = int(np.bincount(counts, minlength=1).argmax())
        return usual if 2 * np.count_nonzero(counts == usual) > len(counts) else self.length

    def cuts(self, windows, size):
        """A list of Cuts, each of `size` rows, whose Batches together score `windows` (int64 [W]); of two shapes at most.

        In one text a window has a row to itself: (size, T, usual slots), or (size, T, T) where it scores more than usual,
        as the first one of a sliding plan does. Where the plan has documents, windows share rows, (size, T, T), but for
        those that score no more than usual with what stands before: sliding inside of a document, about a row long each.
        """
        scored = (self.plan.end - self.plan.begin)[windows]
        if self.plan.floor is None:
            together, full, usual = windows[:0], windows[scored > self.usual], windows[scored <= self.usual]
        else:
            alone = (self.plan.first[windows] > 0) & (scored <= self.usual) & (self.usual < self.length)
            together, full, usual = windows[~alone], windows[:0], windows[alone]
        shape = (size, self.length, self.length)
        layouts = pack_windows(self.plan, together, size, self.length, self.most)
        cuts = [Cut(np.concatenate(layout), shape, layout) for layout in layouts]
        for group, slots in ((full, self.length), (usual, self.usual)):
            parts = (group[at : at + size] for at in range(0, len(group), size))
            cuts += [Cut(part, (size, self.length, slots)) for part in parts]
        return cuts

    def build(self, cut):
        """The Batch of a Cut."""
        if cut.layout is None:
            return self.rows(cut.windows, *cut.shape)
        return self.packed(cut.layout, *cut.shape, cut.shape[0] * (self.most + 1))

    def rows(self, windows, rows, length, slots):
        """A Batch with one window a row, filled up on the right: `windows` int64 [1 to `rows`] indices into the plan.

        `length` is T, `slots` the scored positions a row has room for. Rows beyond the windows repeat the last, unscored.
        ValueError for what does not fit.
        """
        chosen = windows[np.minimum(np.arange(rows), len(windows) - 1)]
        start, size, first = (part[chosen] for part in (self.plan.start, self.plan.length, self.plan.first))
        if len(windows) > rows or size.max() > length or (size - first).max() > slots:
            raise ValueError(f"{len(windows)} windows do not fit {rows} rows of {length} positions and {slots} slots")
        start, size, first = (self._device(part) for part in (start, size, first))
        offset_T = torch.arange(length, device=self.stream.device)
        row_B1 = torch.arange(rows, device=self.stream.device)[:, None]
        ids_BT = self._ids(start[:, None] + offset_T, offset_T < size[:, None])
        position_BS = first[:, None] + torch.arange(slots, device=self.stream.device)
        live_BS = (position_BS < size[:, None]) & (row_B1 < len(windows))
        position_BS = torch.minimum(position_BS, size[:, None] - 1)
        take_BS = position_BS + length * row_B1
        return Batch(ids_BT, take_BS.flatten(), (start[:, None] + position_BS).flatten(), live_BS.flatten())

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
        offsets_W, start, size = (self._device(part) for part in (offsets, start, size))
        place_N = torch.arange(rows * length, device=self.stream.device)
        own_N = torch.searchsorted(offsets_W, place_N, right=True) - 1
        position_BT = (place_N - offsets_W[own_N]).view(rows, length)
        own_BT = own_N.view(rows, length)
        ids_BT = self._ids(start[own_BT] + position_BT, position_BT < size[own_BT])
        bounds = Bounds(position_BT, offsets_W.int(), length)
        return Batch(ids_BT, self._device(take), self._device(target), live_N, bounds)

    def _ids(self, place_BT, own_BT):
        """The stream's tokens where a window has them, int64, else zeros."""
        return torch.where(own_BT, self.stream[place_BT.clamp(max=len(self.stream) - 1)].long(), 0)

    def _device(self, array):
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.stream.device.type != "cuda":
            return tensor
        # From pinned memory, or the host would wait for all that the device has been given before.
        return tensor.pin_memory().to(self.stream.device, non_blocking=True)
