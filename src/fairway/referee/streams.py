"""Streams of tokens whose entropy is known: what no code can go below, whatever it has learnt.

Each is documents of noise: BOS, then tokens that are drawn. A code whose probabilities sum to at most 1 is shorter than
-ln p(stream) - a with a chance of at most e^-a (Kraft and Markov), so a floor holds without any tuning, and for BOS, whose
places are public, it counts nothing.

N: targets of a stream (its tokens but the first). K: ids of a law.
"""

import math
import random
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..data.bytetable import ByteTable, byte_table
from ..data.tokenizer import BOS_ID, SPACE_PIECE, load_tokenizer, train_tokenizer

NARROW_IDS = 16
DOCUMENT_TOKENS = (700, 1700)  # of a document: rare enough that what a code pays for BOS is next to nothing
ONE_IN_A_MILLION = 13.8155  # nats, ln 1e6: what no code saves on noise, but in one of a million texts


@dataclass(frozen=True, eq=False)
class Alphabet:
    """The ids that noise is made of. `plain`: pieces and printable ASCII bytes; `narrow`: 16 pieces that begin with a space
    and have the same number of bytes, where there are that many; `others`: the plain ones that are not narrow; `leads`,
    `tails`: bytes that make two-byte characters, so that what is decoded is valid UTF-8."""

    vocab: int
    table: ByteTable
    plain: np.ndarray
    narrow: np.ndarray
    others: np.ndarray
    leads: np.ndarray
    tails: np.ndarray
    salt: int = 0  # of all draws


@dataclass(frozen=True, eq=False)
class Stream:
    """tokens uint16 [N + 1]; floor_N: -ln of the probability with which each target was drawn; bytes_N: its bytes of text;
    patched_N: whether it is of another law than its neighbours."""

    tokens: np.ndarray
    floor_N: np.ndarray
    bytes_N: np.ndarray
    patched_N: np.ndarray

    @property
    def targets(self):
        """N."""
        return len(self.floor_N)

    def floor(self, tail=0):
        """Nats a target below which a legal code's mean may not be, but in one of a million texts; the smallest of what is
        left when up to `tail` targets at the end are not scored."""
        counts_T = np.arange(self.targets - tail, self.targets + 1)
        return float(((np.cumsum(self.floor_N)[counts_T - 1] - ONE_IN_A_MILLION) / counts_T).min())

    def entropy(self):
        """Mean nats a target of the law itself."""
        return float(self.floor_N.mean())

    def bytes_each(self, tail=0):
        """(least, most) bytes a target when up to `tail` targets at the end are not scored."""
        counts_T = np.arange(self.targets - tail, self.targets + 1)
        means_T = np.cumsum(self.bytes_N)[counts_T - 1] / counts_T
        return float(means_T.min()), float(means_T.max())


def noise_tokenizer(path, vocab):
    """Writes a SentencePiece model of `vocab` pieces with byte fallback, trained on words that are made up. Takes seconds
    for large vocabularies. Problem for a number of pieces that cannot be."""
    chance = random.Random(7)
    parts = [first + vowel + last for first in "bcdfghklmnprstvwz" for vowel in "aeiou" for last in ("", "n", "r", "st")]
    words = ["".join(chance.choices(parts, k=chance.choice((1, 2, 2, 3, 4)))) for _ in range(max(4 * vocab, 4000))]
    lines = [" ".join(chance.choices(words, k=400)) for _ in range(max(vocab // 24, 60))]
    train_tokenizer(lines, vocab, path)


def read_alphabet(path):
    """The Alphabet of a SentencePiece model."""
    tokenizer = load_tokenizer(path)
    table = byte_table(tokenizer)
    byte_ids = {int(tokenizer.id_to_piece(i)[3:5], 16): i for i in range(tokenizer.vocab_size()) if tokenizer.is_byte(i)}
    pieces = [i for i in range(tokenizer.vocab_size()) if not table.boundary[i] and not tokenizer.is_byte(i)]
    spaced = [i for i in pieces if table.leading_space[i] and tokenizer.id_to_piece(i) != SPACE_PIECE]
    lengths = sorted({int(table.base[i]) for i in spaced}, reverse=True)
    groups = [[i for i in spaced if table.base[i] == length] for length in lengths]
    full = [group for group in groups if len(group) >= NARROW_IDS]
    plain = np.array(pieces + [byte_ids[code] for code in range(0x21, 0x7F)])
    # A vocabulary of a few pieces has too few that are alike: the longest ones then, and bytes after them.
    narrow = np.array((full[0] if full else sorted(plain.tolist(), key=lambda i: -table.base[i]))[:NARROW_IDS])
    leads, tails = (np.array([byte_ids[code] for code in codes]) for codes in (range(0xC2, 0xE0), range(0x80, 0xC0)))
    return Alphabet(tokenizer.vocab_size(), table, plain, narrow, np.setdiff1d(plain, narrow), leads, tails)


def uniform_noise(ids_K, count, chance):
    """`count` independent draws, and ln K for each."""
    return chance.choice(ids_K, count), np.full(count, math.log(len(ids_K)))


def balanced_noise(ids_K, count, chance):
    """Permutations of the ids, one after the other: every stretch of some length holds each id equally often. What was drawn
    is charged ln K a token, as if it were independent: no floor, a comparison."""
    tokens = np.concatenate([chance.permutation(ids_K) for _ in range(count // len(ids_K) + 1)])[:count]
    return tokens, np.full(count, math.log(len(ids_K)))


def doubled_noise(ids_K, count, chance):
    """Draws that each stand twice: the second costs nothing. What is known of the token after it shows here alone."""
    tokens = np.repeat(chance.choice(ids_K, count // 2 + 1), 2)[:count]
    return tokens, np.where(np.arange(count) % 2 == 0, math.log(len(ids_K)), 0.0)


def foreign_noise(alphabet, count, chance):
    """Half units of one plain id that is not narrow, half two-byte characters of two byte ids each."""
    tokens, nats = [], []
    single, pair = math.log(len(alphabet.others)), math.log(len(alphabet.leads))
    while len(tokens) < count:
        last = len(tokens) == count - 1  # a character would not end: the place is public
        if last or chance.random() < 0.5:
            tokens.append(chance.choice(alphabet.others))
            nats.append(single + (0.0 if last else math.log(2)))
        else:
            tokens += [chance.choice(alphabet.leads), chance.choice(alphabet.tails)]
            nats += [pair + math.log(2), math.log(len(alphabet.tails))]
    return np.array(tokens), np.array(nats)


def wide_law(alphabet):
    """Noise over all plain ids, as a function (count, chance) -> tokens, nats."""
    return lambda count, chance: uniform_noise(alphabet.plain, count, chance)


def narrow_law(alphabet):
    """Noise over 16 ids: contexts of several orders repeat, and any model learns it in a few steps."""
    return lambda count, chance: uniform_noise(alphabet.narrow, count, chance)


def balanced_law(alphabet):
    """Permutations of the 16 ids."""
    return lambda count, chance: balanced_noise(alphabet.narrow, count, chance)


def doubled_law(alphabet):
    """Noise over all plain ids, each draw twice."""
    return lambda count, chance: doubled_noise(alphabet.plain, count, chance)


def foreign_law(alphabet):
    """Noise over ids that the narrow law never draws, most of them bytes of two-byte characters."""
    return lambda count, chance: foreign_noise(alphabet, count, chance)


def noise_stream(alphabet, law, targets, seed, patch=None, spans=()):
    """A Stream of `targets` + 1 tokens of documents by `law`; within `spans` [(begin, end)] of tokens by the law `patch`.

    Equal seeds give equal documents, and equal tokens outside of the spans.
    """
    chance = np.random.default_rng([seed, alphabet.salt, 1])
    starts = [0]
    while starts[-1] < targets:
        starts.append(starts[-1] + int(chance.integers(*DOCUMENT_TOKENS)))
    tokens = np.full(targets + 1, BOS_ID, np.int64)
    floor, patched = np.zeros(targets + 1), np.zeros(targets + 1, bool)
    for begin, end in zip(starts, [*starts[1:], targets + 1], strict=True):
        begin, end = begin + 1, min(end, targets + 1)
        if begin < end:
            tokens[begin:end], floor[begin:end] = law(end - begin, chance)
    other = np.random.default_rng([seed, alphabet.salt, 2])
    for first, last in spans:
        cuts = [first, *(at for at in starts if first < at < last), last]
        for begin, end in pairwise(cuts):
            begin += begin in starts
            if begin < end:
                tokens[begin:end], floor[begin:end] = patch(end - begin, other)
                patched[begin:end] = True
    tokens = tokens.astype(np.uint16)
    return Stream(tokens, floor[1:], alphabet.table.of_targets(tokens), patched[1:])


def repeated_stream(alphabet, law, targets, seed):
    """A Stream whose second half is its first half again; charged as if it were drawn anew: no floor, a comparison."""
    half = noise_stream(alphabet, law(alphabet), targets // 2 - 1, seed)
    tokens = np.concatenate([half.tokens, half.tokens, half.tokens[:1]])
    floor_N = np.concatenate([[0.0], half.floor_N] * 2 + [[0.0]])[1:]
    return Stream(tokens, floor_N, alphabet.table.of_targets(tokens), np.zeros(len(floor_N), bool))
