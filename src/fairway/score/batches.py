"""Windows laid out for forward passes. B rows, T positions of a row, N slots: scored positions, some of them spare,
S slots of a row, W windows of a batch.

A batch of one kind always has the same shape, its spare slots repeating what is there: one compiled graph serves a kind.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..data.prefetch import on_device


@dataclass(frozen=True, eq=False)
class Batch:
    """What one forward pass reads, and which of its positions are scored.

    ids_BT int64; where a window ends before its row does there are zeros, never the tokens that follow it in the stream.
    take_N int64: the flattened position that a slot reads. target_N int64: the target that it scores. live_N bool: False
    for spare slots. bounds: the Bounds of rows that hold several windows, else None.
    """

    ids_BT: torch.Tensor
    take_N: torch.Tensor
    target_N: torch.Tensor
    live_N: torch.Tensor
    bounds: object = None


@dataclass(frozen=True, eq=False)
class Cut:
    """What a Batch is built of: windows (int64 [W], indices into the plan), and its shape (B, T, S); N is B * S.

    `layout`: which windows share which row, a list of at most B int64 arrays; None: window b has row b to itself.
    """

    windows: np.ndarray
    shape: tuple[int, int, int]
    layout: list | None = None


class Collator:
    """Cuts batches out of a stream on the device: `stream` int32 [tokens], `plan` a WindowPlan of it."""

    def __init__(self, stream, plan, length=None):
        """`length`: T of every row, the plan's longest window unless given."""
        self.stream, self.plan = stream, plan
        self.length = int(plan.length.max(initial=1)) if length is None else length
        # The targets that more than half of the windows score which may have a row to themselves; else T.
        counts = self.lone_counts()
        usual = int(np.bincount(counts, minlength=1).argmax())
        self.usual = usual if 2 * np.count_nonzero(counts == usual) > len(counts) else self.length

    def lone_counts(self):
        """Targets of all windows that may have a row to themselves."""
        return self.plan.end - self.plan.begin

    def cuts(self, windows, size):
        """A list of Cuts, each of `size` rows, whose Batches together score `windows` (int64 [W]); of two shapes at most.

        A window has a row to itself: (size, T, usual slots), or (size, T, T) where it scores more than usual, as the first
        one of a sliding plan does.
        """
        more = (self.plan.end - self.plan.begin)[windows] > self.usual
        return self._alone(windows[more], size, self.length) + self._alone(windows[~more], size, self.usual)

    def _alone(self, windows, size, slots):
        parts = (windows[at : at + size] for at in range(0, len(windows), size))
        return [Cut(part, (size, self.length, slots)) for part in parts]

    def build(self, cut):
        """The Batch of a Cut."""
        return self.rows(cut.windows, *cut.shape)

    def rows(self, windows, rows, length, slots):
        """A Batch with one window a row, filled up on the right: `windows` int64 [1 to `rows`] indices into the plan.

        `length` is T, `slots` the scored positions a row has room for. Rows beyond the windows repeat the last, unscored.
        ValueError for what does not fit.
        """
        plan, chosen = self.plan, windows[np.minimum(np.arange(rows), len(windows) - 1)]
        if len(windows) > rows or plan.length[chosen].max() > length or (plan.end - plan.begin)[chosen].max() > slots:
            raise ValueError(f"{len(windows)} windows do not fit {rows} rows of {length} positions and {slots} slots")
        parts = np.stack([plan.start[chosen], plan.length[chosen], plan.first[chosen], np.arange(rows)])
        start_B1, size_B1, first_B1, row_B1 = self.device_tensor(parts)[:, :, None]
        place_T = torch.arange(max(length, slots), device=self.stream.device)
        position_BS = first_B1 + place_T[:slots]
        live_BS = (position_BS < size_B1) & (row_B1 < len(windows))
        position_BS = torch.minimum(position_BS, size_B1 - 1)
        ids_BT = self.ids(start_B1 + place_T[:length], place_T[:length] < size_B1)
        parts = position_BS + length * row_B1, start_B1 + position_BS, live_BS
        return Batch(ids_BT, *(part.flatten() for part in parts))

    def ids(self, place_BT, own_BT):
        """The stream's tokens where a window has them, int64, else zeros."""
        return torch.where(own_BT, self.stream[place_BT.clamp(max=len(self.stream) - 1)].long(), 0)

    def device_tensor(self, array):
        """An array on the stream's device."""
        return on_device(torch.from_numpy(np.ascontiguousarray(array)), self.stream.device)
