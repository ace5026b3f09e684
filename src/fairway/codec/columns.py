"""Our own coder of quantised weights: table rANS whose table follows from the spread of a code's column so far.

Rows of k-sigma codes are alike, columns are not (4 to 15 % in matrices, 10 to 18 % in an embedding), so a code's context is
the mean magnitude of its column, from the rows above: known to the decoder and never sent. Rows of other schemes differ
too; then a spread a row is sent, if that saves bytes. All of it is integers, the same on every machine.

R rows, C columns, K tables, S = 256 symbols, N arrays. A symbol is its byte less its array's median, plus 128 (for int8:
the code plus 128); its magnitude the distance from 128. A level is 16 log2(magnitude) steps; context = level + 256 set.

    plane:  kind u8 (1; 0: the bytes follow as they are), setting u8 (bit 7: row spreads), magnitude u16, tail u8,
            tables - 1 u8, size of the side u32, size of the row spreads' frame u32
            | side, deflated: medians N, first contexts u16 K, weights S K | row spreads | the stream of rans.py
"""

import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np

from ..problem import Problem
from ..sites import CodecSite
from .planes import byte_planes, from_planes, order0_bits
from .rans import WHOLE, LaneReader, frequencies, log_weights, write_lanes

FIXED = "<BBHBBII"
BLOCK = 8  # rows between two looks at the columns
MOST_LANES = 512
GREATEST_DENSITY = 1 << 15  # codes a byte: beyond, a frame of nothing could state years of work; such planes are raw
MOST_TABLES = 64
# What the first estimate weighs in rows, the most that all before weigh, and whether a tensor begins with the columns of
# the one before it of its width.
SETTINGS = (
    (32, 256, False), (32, 256, True), (32, 16384, False), (32, 16384, True),
    (128, 256, False), (128, 256, True), (128, 16384, False), (128, 16384, True),
)  # fmt: skip


def magnitude_levels():
    """Of magnitudes in 256ths: 16 steps an octave, from 32 to 208. None lies near a half, so all machines round alike."""
    return np.rint(32 + 16 * np.log2(np.arange(1 << 15).clip(16) / 16)).astype(np.int64)


def next_states():
    """[2 state + parity] -> the state of the row below: the 8-state trellis."""
    return np.array([(2 * s & 7) | (parity ^ (s >> 1 & 1) ^ (s >> 2)) for s in range(8) for parity in range(2)])


class ColumnSpread:
    """Running mean magnitudes of columns, in 2^-16, and the contexts they give. Encoder and decoder walk it alike."""

    def __init__(self, setting, magnitude, trellis):
        self.first, self.most, self.carry = SETTINGS[setting]
        self.magnitude, self.trellis, self.widths = magnitude << 8, trellis, {}
        self.levels, self.next_state = magnitude_levels(), next_states()

    def open(self, columns):
        """Begins a tensor."""
        self.weight, self.state_C = self.first, np.zeros(columns, np.int64)
        self.mean_C = self.widths.get(columns) if self.carry else None
        if self.mean_C is None:
            self.mean_C = np.full(columns, self.magnitude)
        self.level_C = self.levels.take(self.mean_C >> 8, mode="clip")

    def fold(self, rows_RC):
        """Takes the symbols of up to BLOCK rows."""
        rows = len(rows_RC)
        total_C = np.abs(rows_RC.astype(np.int16) - 128).sum(0, dtype=np.int64) << 16
        self.mean_C = (self.mean_C * self.weight + total_C) // (self.weight + rows)
        self.weight = min(self.weight + rows, self.most)
        self.widths[len(self.mean_C)] = self.mean_C
        self.level_C = self.levels.take(self.mean_C >> 8, mode="clip")

    def contexts(self, shift):
        """Of the next row, whose spread is `shift` levels above the common one."""
        return self.level_C + shift + (self.state_C & 1) * 256 if self.trellis else self.level_C + shift

    def step(self, row_C):
        """Takes the next row's parities."""
        if self.trellis:
            self.state_C = self.next_state.take(self.state_C * 2 + (row_C & 1))


def _grid(shape, trellis):
    # Rows and columns of an array; thin ones are one row, so that no step is left with a few lanes.
    size = math.prod(shape)
    columns = shape[-1] if len(shape) > 1 and (trellis or shape[-1] >= 32) else size
    return (size // columns, columns) if size else (0, 0)


def _keys(symbols, shifts, setting, magnitude, trellis):
    """context * 256 + symbol of every symbol: int32 [R, C] of each array."""
    spread, keys, row = ColumnSpread(setting, magnitude, trellis), [], 0
    for symbols_RC in symbols:
        key_RC = symbols_RC.astype(np.int32)
        spread.open(symbols_RC.shape[1])
        for first in range(0, len(symbols_RC), BLOCK):
            block = symbols_RC[first : first + BLOCK]
            if trellis:
                for index, row_C in enumerate(block, first):
                    key_RC[index] += spread.contexts(0) << 8
                    spread.step(row_C)
            else:
                key_RC[first : first + BLOCK] += spread.contexts(0) << 8
            spread.fold(block)
        key_RC += shifts[row : row + len(key_RC), None] << 8
        row += len(key_RC)
        keys.append(key_RC)
    return keys


def _histogram(keys):
    # Of many small arrays at once, for a histogram is longer than they are.
    return np.bincount(np.concatenate([key_RC.ravel() for key_RC in keys]), minlength=1 << 17).reshape(512, 256)


def _table_bits(counts_KS):
    # What symbols cost in their own tables, and about what the tables do.
    log_KS = np.log2(np.maximum(counts_KS, 1))
    total_K = counts_KS.sum(1)
    return total_K * np.log2(np.maximum(total_K, 1)) - (counts_KS * log_KS).sum(1) + 5 * (counts_KS > 0).sum(1) + 16


def _merged(counts_KS):
    """(first contexts, counts, bits): neighbouring contexts share a table where that costs less than two."""
    (first_K,) = counts_KS.any(1).nonzero()
    counts_KS = counts_KS[first_K]
    while len(first_K) > 1:
        bits_K = _table_bits(counts_KS)
        loss_K = _table_bits(counts_KS[:-1] + counts_KS[1:]) - bits_K[:-1] - bits_K[1:]
        best = int(loss_K.argmin())
        if loss_K[best] >= 0 and len(first_K) <= MOST_TABLES:
            break
        counts_KS[best] += counts_KS[best + 1]
        first_K, counts_KS = np.delete(first_K, best + 1), np.delete(counts_KS, best + 1, 0)
    return first_K, counts_KS, _table_bits(counts_KS).sum()


def _tables_of(first_K):
    # Each context's table.
    return (np.searchsorted(first_K, np.arange(512), "right") - 1).clip(0)


def _row_shifts(symbols):
    # Each row's spread beside its tensor's, in levels: even numbers in [-32, 32].
    shifts = [np.zeros(0)]
    for symbols_RC in filter(np.size, symbols):
        mean_R = np.abs(symbols_RC.astype(np.int16) - 128).mean(1) + 0.01
        shifts.append(2 * np.clip(np.rint(8 * np.log2(mean_R / mean_R.mean())), -16, 16))
    return np.concatenate(shifts).astype(np.int32)


def _lanes(size):
    # A lane costs a byte or two, a step some microseconds: of few codes a lane has fewer.
    return 1 << min(max(size >> 14, math.isqrt(size) >> 4, 1), MOST_LANES).bit_length() - 1


class PlaneModel:
    """The best model of one plane: settings chosen on a sixteenth of the columns, then tables from all."""

    def __init__(self, symbols, trellis):
        rows = sum(map(len, symbols))
        size = sum(symbols_RC.size for symbols_RC in symbols)
        total = sum(int(np.abs(symbols_RC.astype(np.int16) - 128).sum()) for symbols_RC in symbols)
        self.magnitude = 256 * total // size
        step = 16 if size > 1 << 18 else 1
        thin = [symbols_RC[:, ::step] for symbols_RC in symbols]
        self.shifts = np.zeros(rows, np.int32)

        def cost(setting, shifts):
            keys = _keys(thin, shifts, setting, self.magnitude, trellis)
            return _merged(step * _histogram(keys))[2]

        costs = [cost(setting, self.shifts) for setting in range(len(SETTINGS))]
        self.setting, spreads = int(np.argmin(costs)), _row_shifts(symbols)
        self.rowwise = rows >= 64 and cost(self.setting, spreads) + order0_bits(spreads) + 400 < min(costs)
        if self.rowwise:
            self.shifts = spreads
        self.keys = _keys(symbols, self.shifts, self.setting, self.magnitude, trellis)
        self.first_K, counts_KS, _ = _merged(_histogram(self.keys))
        self.weights_KS = log_weights(counts_KS)
        self.lanes = _lanes(size)

    def table_keys(self):
        """table * 256 + symbol: uint16 [R, C] of each array."""
        table = _tables_of(self.first_K)
        return [((table.take(key_RC >> 8) << 8) + (key_RC & 255)).astype(np.uint16) for key_RC in self.keys]

    def side(self, medians):
        """The deflated side information."""
        weights_SK = np.diff(self.weights_KS, axis=0, prepend=np.uint8(0)).T
        side = medians.tobytes() + self.first_K.astype("<u2").tobytes() + weights_SK.tobytes()
        return zlib.compress(side, 9, -15)


@dataclass(frozen=True)
class ColumnRans(CodecSite):
    """Table rANS under contexts of column spread (and row spread, where it pays), decoded by numpy alone.

    Measured with all side information: 0.99908 of the order-0 entropy by class of tensor on a trained model's GPTQ codes,
    0.99810 on codes drawn with the spreads of the public script's. A frame is its arrays' byte planes, lowest first, each
    led by its size (u32).
    """

    tag = 4

    def encode(self, arrays, trellis=False):
        frames = []
        for plane in range(arrays[0].dtype.itemsize if arrays else 0):
            symbols, medians = _plane_symbols(arrays, plane, trellis)
            raw = b"\0" + b"".join(byte_planes(array)[plane].tobytes() for array in arrays)
            frame = self._coded(symbols, medians, trellis) if len(raw) > 1 else raw
            frames.append(raw if len(raw) <= len(frame) or len(raw) > len(frame) * GREATEST_DENSITY else frame)
        return b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)

    def _coded(self, symbols, medians, trellis):
        model = PlaneModel(symbols, trellis)
        rows = [row_C for key_RC in model.table_keys() for row_C in key_RC]
        words, tail = write_lanes(rows, *(table.ravel() for table in frequencies(model.weights_KS)), model.lanes)
        side, tables = model.side(medians), len(model.first_K)
        spreads = self.encode([model.shifts.astype(np.int8)]) if model.rowwise else b""
        setting = model.setting | model.rowwise << 7
        head = (1, setting, model.magnitude, tail, tables - 1, len(side), len(spreads))
        return struct.pack(FIXED, *head) + side + spreads + words.tobytes()

    def decode(self, frame, layouts, trellis=False):
        planes, place = [], 0
        for _ in range(np.dtype(layouts[0][0]).itemsize if layouts else 0):
            end = place + 4 + int.from_bytes(frame[place : place + 4], "little")
            if end < place + 5 or end > len(frame):
                raise Problem(f"a frame of {len(frame)} bytes is cut; fetch the file again")
            planes.append(self._plane(frame[place + 4 : end], [shape for _, shape in layouts], trellis))
            place = end
        if place != len(frame):
            raise Problem(f"{len(frame) - place} surplus bytes after a frame; fetch the file again")
        each = zip(layouts, zip(*planes, strict=True), strict=True)
        return [from_planes(np.stack(parts), dtype, shape) for (dtype, shape), parts in each]

    def _plane(self, frame, shapes, trellis):
        """uint8 [N] of each array."""
        codes = sum(map(math.prod, shapes))
        if codes > len(frame) * GREATEST_DENSITY:
            raise Problem(f"a plane of {len(frame)} bytes for {codes} codes; that is no honest model")
        grids = [_grid(shape, trellis) for shape in shapes]
        if not frame[0]:
            content = np.frombuffer(frame, np.uint8)[1:]
            if content.size != codes:
                raise Problem(f"a plane of {content.size} bytes where {codes} are due; fetch the file again")
            return np.split(content, np.cumsum([rows * columns for rows, columns in grids])[:-1])
        try:
            _, setting, magnitude, tail, tables, side_size, spreads_size = struct.unpack_from(FIXED, frame)
            place, size = struct.calcsize(FIXED) + side_size, len(grids) + 258 * (tables + 1)
            side = zlib.decompressobj(-15).decompress(frame[place - side_size : place], size)
            medians = np.frombuffer(side, np.uint8, len(grids))
            first_K = np.frombuffer(side, "<u2", tables + 1, len(grids))
            weights_SK = np.frombuffer(side, np.uint8, (tables + 1) * 256, size - (tables + 1) * 256).reshape(256, -1)
            words = np.frombuffer(frame[place + spreads_size :], "<u2")
            reader = LaneReader(words, _lanes(codes), frequencies(weights_SK.cumsum(1, np.uint8).T))
            spread = ColumnSpread(setting & 127, magnitude, trellis)
        except (struct.error, zlib.error, ValueError, IndexError) as error:
            raise Problem(f"a plane's head is broken ({error}); fetch the file again") from error
        left, shifts = sum(rows for rows, _ in grids), None
        if setting >> 7:
            spreads = frame[place : place + spreads_size]
            if spreads[4:5] != b"\0" and spreads[5:6] >= b"\x80":
                raise Problem("row spreads that have row spreads of their own; fetch the file again")
            (shifts,) = self.decode(spreads, [(np.int8, (left,))])
        table, planes = _tables_of(first_K), []
        for (rows, columns), median in zip(grids, medians, strict=True):
            symbols_RC = np.empty((rows, columns), np.uint8)
            spread.open(columns)
            for row, row_C in enumerate(symbols_RC):
                if left == tail:
                    reader = reader.tail()
                shift = 0 if shifts is None else int(shifts[-left])
                row_C[:] = reader.read(table.take(spread.contexts(shift), mode="clip"))
                spread.step(row_C)
                left -= 1
                if row % BLOCK == BLOCK - 1:
                    spread.fold(symbols_RC[row + 1 - BLOCK : row + 1])
            if rows % BLOCK:
                spread.fold(symbols_RC[-(rows % BLOCK) :])
            planes.append(symbols_RC.reshape(-1) + median - np.uint8(128))
        reader.finish()
        return planes

    def measure(self, arrays, trellis=False):
        bits = np.zeros(len(arrays))
        for plane in range(arrays[0].dtype.itemsize if arrays else 0):
            symbols, medians = _plane_symbols(arrays, plane, trellis)
            sizes = np.array([symbols_RC.size for symbols_RC in symbols])
            if not sizes.sum():
                continue
            model = PlaneModel(symbols, trellis)
            cost = -np.log2(np.maximum(frequencies(model.weights_KS)[0], 1) / WHOLE).astype(np.float32).ravel()
            own = np.array([cost.take(key_RC).sum(dtype=float) for key_RC in model.table_keys()])
            spreads = order0_bits(model.shifts) if model.rowwise else 0
            extra = 8 * len(model.side(medians)) + 12 * model.lanes + spreads + 200
            bits += np.minimum(own + extra * sizes / sizes.sum(), 8 * sizes + 40 / len(sizes))
        return [float(one) for one in bits / 8]


def _plane_symbols(arrays, plane, trellis):
    # One byte of every element, as symbols: [uint8 [R, C]], and the medians, uint8 [N]; int8 stays as it is.
    symbols, medians = [], np.zeros(len(arrays), np.uint8)
    for index, array in enumerate(arrays):
        content = byte_planes(array)[plane]
        if array.dtype != np.int8 and content.size:
            medians[index] = np.partition(content, content.size // 2)[content.size // 2]
        symbols.append((content - medians[index] + np.uint8(128)).reshape(_grid(array.shape, trellis)))
    return symbols, medians
