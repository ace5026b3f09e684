"""How many bytes of text each token stands for, given its predecessor: the denominator of bits per byte.

V: pieces of the vocabulary.
"""

from dataclasses import dataclass

import numpy as np

from ..problem import Problem
from .tokenizer import SPACE_PIECE


@dataclass(frozen=True, eq=False)
class ByteTable:
    """Bytes of token y after token x: base[y] + (leading_space[y] and not boundary[x]) (PR #162, #1514).

    base int16 [V]: 0 for control, unknown and unused ids, 1 for byte-fallback ids, else the piece's UTF-8 length without
    one leading space; leading_space bool [V]: the piece starts with one; boundary bool [V]: control, unknown or unused.
    """

    base: np.ndarray
    leading_space: np.ndarray
    boundary: np.ndarray

    def counts(self, previous, target):
        """Bytes of each target token given the token before it: integer ids [N], [N] -> int64 [N]."""
        return self.base[target].astype(np.int64) + (self.leading_space[target] & ~self.boundary[previous])

    def total(self, tokens, chunk=1 << 20):
        """Bytes of tokens[1:], a part at a time: the counts of 62 million tokens need not be in memory at once."""
        parts = (tokens[at : at + chunk + 1] for at in range(0, len(tokens) - 1, chunk))
        return sum(int(self.counts(part[:-1], part[1:]).sum()) for part in parts)

    def of_targets(self, tokens):
        """Bytes of each of tokens[1:]: int32."""
        return self.counts(tokens[:-1], tokens[1:]).astype(np.int32)


def byte_table(tokenizer):
    """The ByteTable of a SentencePieceProcessor. Counts equal decode-and-count of any text that the tokenizer encoded.

    U+2581 inside a piece decodes to a space, one byte; the contest's models have no such piece, so its own rule (three
    bytes, its UTF-8 length) gives the same table there. Raises Problem for a model without a piece for the space: it
    spells each space in three bytes and understates bits per byte by about a fifth (#897).
    """
    if tokenizer.piece_to_id(SPACE_PIECE) == tokenizer.unk_id():
        raise Problem("the tokenizer has no piece for a space (U+2581), so its bytes cannot be counted; train another")
    size = tokenizer.vocab_size()
    base, leading, boundary = np.zeros(size, np.int16), np.zeros(size, bool), np.zeros(size, bool)
    for token in range(size):
        if tokenizer.is_control(token) or tokenizer.is_unknown(token) or tokenizer.is_unused(token):
            boundary[token] = True
        elif tokenizer.is_byte(token):
            base[token] = 1
        else:
            piece = tokenizer.id_to_piece(token)
            leading[token] = piece.startswith(SPACE_PIECE)
            base[token] = len(piece.removeprefix(SPACE_PIECE).replace(SPACE_PIECE, " ").encode())
    return ByteTable(base, leading, boundary)
