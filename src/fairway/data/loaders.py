"""Loaders: in which order the tokens of the training shards reach the ranks.

Shape suffixes: B sequences a micro-step and rank, T tokens a sequence, N tokens of a stream or shard.
"""

from bisect import bisect_right
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..problem import Problem
from ..sites import LoaderSite
from .shards import open_shard


@dataclass(frozen=True)
class LoaderContext:
    """What a loader must know: the training shards, whose share, and how much of it at a time."""

    paths: tuple[Path, ...]
    rank: int
    world: int
    tokens: int  # of one micro-step on one rank, B * T
    seq: int  # T
    vocab: int

    def sequences(self):
        """B; Problem unless a whole number of sequences makes up `tokens`, or there is no shard."""
        if not self.paths:
            raise Problem("no training shards; `fairway data build` writes them")
        if self.seq < 1 or self.tokens < 1 or self.tokens % self.seq:
            raise Problem(f"{self.tokens} tokens per rank and micro-step are no multiple of the sequence length {self.seq}")
        return self.tokens // self.seq

    def shards(self):
        """(path, memory-mapped uint16 tokens) of every shard, by file name."""
        return [(path, open_shard(path)) for path in sorted(map(Path, self.paths), key=lambda path: (path.name, path))]

    def batch(self, x_BT, y_BT):
        """The pair as int64 tensors of shape [B, T]."""
        shape = self.sequences(), self.seq
        return tuple(torch.from_numpy(part.astype(np.int64)).view(shape) for part in (x_BT, y_BT))

    def known(self, tokens, path):
        """`tokens`, or Problem if the model has no row for one of them."""
        if tokens.max() >= self.vocab:
            raise Problem(
                f"token {tokens.max()} in {path} but the model has {self.vocab} rows: data and recipe differ in vocabulary"
            )
        return tokens


def training_batches(recipe, dataset, world):
    """The recipe's loader, from the beginning of the training text, with this rank's share."""
    shares = world.rank, world.size, recipe.train.micro_tokens, recipe.model.sequence, recipe.model.vocab
    return recipe.loader.build(LoaderContext(dataset.train, *shares))


@dataclass(frozen=True)
class SequentialShards(LoaderSite):
    """Shards by name, strictly in sequence, from the start again after the last (PR #162).

    A micro-step takes world * (tokens + 1) consecutive tokens; rank r owns the r-th span of tokens + 1, of which x is
    all but the last token and y all but the first. Nothing is shuffled, documents are not aligned.
    """

    def build(self, context):
        return SequentialBatches(context)


class SequentialBatches:
    """The iterator of `SequentialShards`. Its state is one position in the stream, the same on all ranks."""

    def __init__(self, context):
        self.context = context
        context.sequences()
        self.shards = context.shards()
        self.ends = np.cumsum([len(tokens) for _, tokens in self.shards]).tolist()
        self.size, self.span, self.position = self.ends[-1], context.tokens + 1, 0
        if self.size < self.span:
            raise Problem(
                f"the training shards hold {self.size} tokens but one rank takes {self.span}; lower train.micro_tokens"
            )

    def next(self):
        """(x, y): int64 tensors [B, T]."""
        span = self._read((self.position + self.context.rank * self.span) % self.size, self.span)
        self.position = (self.position + self.context.world * self.span) % self.size
        return self.context.batch(span[:-1], span[1:])

    def _read(self, start, count):
        """`count` tokens from `start` on, across borders of shards and of the whole."""
        parts = []
        while count:
            index = bisect_right(self.ends, start)
            path, tokens = self.shards[index]
            begin = start - (self.ends[index] - len(tokens))
            parts.append(self.context.known(tokens[begin : begin + count], path))
            count -= len(parts[-1])
            start = self.ends[index] % self.size
        return np.concatenate(parts)

    def state(self):
        """What `restore` needs to go on exactly here."""
        return {"position": self.position}

    def restore(self, state):
        """Goes on where `state` was taken; Problem if that cannot have been on these shards."""
        if not 0 <= state["position"] < self.size:
            raise Problem(
                f"position {state['position']} is outside the {self.size} training tokens: the data changed, start anew"
            )
        self.position = state["position"]


@dataclass(frozen=True)
class ShuffledWindows(LoaderSite):
    """Windows of T + 1 tokens, in random order without replacement, from a rank's own shards (PR #1514).

    Rank r owns every world-th shard from the r-th on and one PCG64(seed + r). An epoch draws for each shard a phase and a
    permutation of the windows that follow it; each window comes from a shard chosen in proportion to what it has left.
    The contest's order is `seed=0`: there the order of the data does not depend on the run's seed.

    With fewer shards than ranks, the ranks that meet in one shard share it in equal contiguous parts.
    """

    seed: int = 0

    def __post_init__(self):
        if self.seed < 0:
            raise Problem(f"ShuffledWindows.seed is {self.seed}; take 0 or more")

    def build(self, context):
        return ShuffledBatches(context, self.seed)


class ShuffledBatches:
    """The iterator of `ShuffledWindows`. Its state: the generator as the epoch began and now, what each shard has left."""

    def __init__(self, context, seed):
        self.context, self.count = context, context.sequences()
        self.shards = self._own(context)
        windows = sum(max(len(tokens) - 1, 0) // context.seq for _, tokens in self.shards)
        if not windows:
            raise Problem(
                f"rank {context.rank} owns {max(len(tokens) for _, tokens in self.shards)} tokens at most"
                f" but a window takes {context.seq + 1}; lower model.sequence"
            )
        self.random = np.random.Generator(np.random.PCG64(seed + context.rank))
        self._shuffle()

    @staticmethod
    def _own(context):
        shards = context.shards()
        if len(shards) >= context.world:
            return shards[context.rank :: context.world]
        group, index = divmod(context.rank, len(shards))
        sharers = len(range(index, context.world, len(shards)))
        path, tokens = shards[index]
        begin, end = (len(tokens) * part // sharers for part in (group, group + 1))
        return [(path, tokens[begin:end])]

    def _shuffle(self):
        """Begins an epoch: one draw of phase and permutation a shard, in order."""
        # A copy: a generator's own `state` is asked for by checkpoints alone.
        self.epoch, seq, self.starts = deepcopy(self.random), self.context.seq, []
        for _, tokens in self.shards:
            phase = int(self.random.integers(max(min(seq - 1, len(tokens) - seq - 1), 0) + 1))
            order = self.random.permutation(max(len(tokens) - 1 - phase, 0) // seq)
            self.starts.append(phase + seq * order)
        self.left = np.array([len(starts) for starts in self.starts])

    def next(self):
        """(x, y): int64 tensors [B, T]."""
        windows = np.stack([self._window() for _ in range(self.count)])
        return self.context.batch(windows[:, :-1], windows[:, 1:])

    def _window(self):
        if not self.left.any():
            self._shuffle()
        shard = int(self.random.choice(len(self.left), p=self.left / self.left.sum()))
        self.left[shard] -= 1
        start = self.starts[shard][self.left[shard]]
        path, tokens = self.shards[shard]
        return self.context.known(tokens[start : start + self.context.seq + 1], path)

    def state(self):
        """What `restore` needs to go on exactly here: plain numbers, some of 128 bits."""
        epoch, now = self.epoch.bit_generator.state, self.random.bit_generator.state
        return {"epoch": epoch, "random": now, "left": self.left.tolist()}

    def restore(self, state):
        """Goes on where `state` was taken; Problem if that cannot have been on these shards."""
        self.random.bit_generator.state = state["epoch"]
        self._shuffle()
        left = np.array(state["left"])
        if left.shape != self.left.shape or (left > self.left).any():
            raise Problem(
                f"this rank has {self.left.tolist()} windows a shard, not {left.tolist()}: the data changed, start anew"
            )
        self.left = left
        self.random.bit_generator.state = state["random"]
