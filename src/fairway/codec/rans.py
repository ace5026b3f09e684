"""Table rANS by lanes: many coders in step, each with its own state, sharing one stream of 16-bit words.

A state x in [2^16, 2^32) takes a symbol of frequency f and start c (of 2^14) as x -> (x // f) 2^14 + x mod f + c, after
giving up its low word if it would leave its range (Duda 2013; lanes after Giesen 2014). The decoder undoes this in the
opposite order, so the encoder walks backwards. K tables, S = 256 symbols, R rows, C columns, L lanes.

A stream is the lanes' states (two words each), then the words. Where the encoder began, a lane's low word is free: there
the words of a second stream lie, of one lane, which holds the last rows. So only the last lane of all begins in vain.
"""

import numpy as np

from ..problem import Problem

PRECISION = 14
WHOLE = 1 << PRECISION
LEAST_STATE = 1 << 16


def log_weights(counts_KS):
    """Counts -> uint8 weights that `frequencies` turns into tables near them; 0 where, and only where, the count is 0."""
    share_KS = counts_KS * (WHOLE / counts_KS.sum(1, keepdims=True)) - 1  # each symbol has one unit before its share
    log_KS = 20 * np.log2(np.maximum(share_KS, 0.01) / share_KS.max(1, keepdims=True).clip(0.01))
    return (np.clip(np.rint(255 + log_KS), 1, 255) * (counts_KS > 0)).astype(np.uint8)


def frequencies(weights_KS):
    """(frequencies, starts), int64 [K, S], each table's sum exactly 2^14. Problem for a table without symbols."""
    # 20 steps an octave; 0 is a symbol that does not occur. No value lies near a half, so every machine rounds alike.
    steps_S, used_KS = np.arange(256), weights_KS > 0
    power_KS = np.rint(2.0 ** (steps_S / 20 + 4)).astype(np.int64)[weights_KS] * used_KS
    if not used_KS.any(1).all():
        raise Problem("a table without symbols; fetch the file again")
    spare_K1 = WHOLE - used_KS.sum(1, keepdims=True)
    frequency_KS = used_KS + power_KS * spare_K1 // power_KS.sum(1, keepdims=True)
    row_K = np.arange(len(frequency_KS))
    frequency_KS[row_K, power_KS.argmax(1)] += WHOLE - frequency_KS.sum(1)
    return frequency_KS, frequency_KS.cumsum(1) - frequency_KS


def write_lanes(rows, frequency, start, lanes):
    """(words, tail) of `rows`, arrays of indices into the flat tables: the stream, and how many last rows are in its
    second stream."""
    cost = np.maximum(-np.log2(np.maximum(frequency, 1) / WHOLE), 1) / 16  # in words; at least a bit, for one lane is slow
    tail, room = 0, lanes - 8
    while tail < min(len(rows), 255) and (room := room - cost[rows[-1 - tail]].sum()) > 0:
        tail += 1
    state_L = np.full(lanes, LEAST_STATE)
    if tail:
        inner = _write(rows[-tail:], frequency, start, state_L[:1].copy())
        state_L[: len(inner)] += inner
    return _write(rows[: len(rows) - tail], frequency, start, state_L), tail


def _write(rows, frequency, start, state_L):
    lanes, words = len(state_L), []
    for row in reversed(rows):
        for first in range((len(row) - 1) // lanes * lanes, -1, -lanes):
            key = row[first : first + lanes]
            state, scale = state_L[: len(key)], frequency.take(key)
            (full,) = (state >= scale << (32 - PRECISION)).nonzero()
            words.append(state[full].astype(np.uint16))
            state[full] >>= 16
            # Both are below 2^32, so the quotient of doubles is exact when cut.
            quotient = (state / scale).astype(np.int64)
            state += quotient * (WHOLE - scale) + start.take(key)
    return np.concatenate([state_L.astype("<u4").view(np.uint16), *reversed(words)])


class LaneReader:
    """Reads rows that `write_lanes` wrote; `tables` as `frequencies` gives them."""

    def __init__(self, words, lanes, tables, padded=False):
        if len(words) < 2 * lanes:
            raise Problem("a stream without its states; fetch the file again")
        self.state_L = words[: 2 * lanes].astype("<u2").view("<u4").astype(np.int64)
        self.words, self.place, self.tables, self.padded = words[2 * lanes :].astype(np.int64), 0, tables, padded
        self.frequency, self.start = (table.reshape(-1) for table in tables)
        self.keys = np.arange(self.frequency.size).repeat(self.frequency).astype(np.uint16)

    def read(self, table_C):
        """The next row's indices into the flat tables, uint16 [C]; `table_C` is each column's table."""
        lanes, row = len(self.state_L), np.empty(len(table_C), np.uint16)
        for first in range(0, len(table_C), lanes):
            base = table_C[first : first + lanes] << PRECISION
            state = self.state_L[: len(base)]
            slot = state & (WHOLE - 1)
            key = self.keys.take(base + slot)
            row[first : first + lanes] = key
            state >>= PRECISION
            state *= self.frequency.take(key)
            state += slot
            state -= self.start.take(key)
            (low,) = (state < LEAST_STATE).nonzero()
            end = self.place + len(low)
            if end > len(self.words):
                raise Problem("a stream that is too short; fetch the file again")
            state[low] = (state[low] << 16) | self.words[self.place : end]
            self.place = end
        return row

    def tail(self):
        """The reader of the second stream, once the first is read."""
        self.finish(LEAST_STATE - 1)
        return LaneReader((self.state_L & (LEAST_STATE - 1)).astype(np.uint16), 1, self.tables, True)

    def finish(self, free=0):
        """Problem unless all is read, and the states are what the encoder began with but for the bits `free`."""
        left = self.words[self.place :]
        if left.any() or (left.size and not self.padded) or ((self.state_L & ~free) != LEAST_STATE).any():
            raise Problem("a stream that does not end as it should; fetch the file again")
