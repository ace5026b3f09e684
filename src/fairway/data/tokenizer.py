"""SentencePiece tokenizers as the contest makes them: BPE with byte fallback, and whole documents that begin with BOS."""

import io
import os
from pathlib import Path

import numpy as np
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from ..files import write_bytes
from ..problem import Problem

NORMALIZATIONS = ("nmt_nfkc", "identity")
BOS_ID = 1  # the contest's; models look for it to tell where a document begins
SPACE_PIECE = "\u2581"  # how SentencePiece writes a space
_SENTENCE_CHARS = 4096  # documents are cut into these: what is sampled, and within the length the trainer takes


def train_tokenizer(documents, vocab, path, normalization="nmt_nfkc", sample_bytes=32_000_000):
    """Trains a BPE model of `vocab` pieces on about `sample_bytes` taken evenly over `documents`; writes it to `path`.

    `nmt_nfkc` is the contest's: it folds white space and compatibility characters. `identity` keeps every character but
    U+2581 itself, newlines and indentation too. pad 0, bos 1, eos 2, unk 3, then 256 byte pieces. Deterministic.
    Raises Problem when the text is too small or too varied for `vocab`.
    """
    if normalization not in NORMALIZATIONS:
        raise Problem(f"unknown normalization {normalization!r}: one of {', '.join(NORMALIZATIONS)}")
    refuse_vocab(vocab)
    model, lossless = io.BytesIO(), normalization == "identity"
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(_even_sample(documents, sample_bytes)),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab,
            normalization_rule_name=normalization,
            remove_extra_whitespaces=not lossless,
            allow_whitespace_only_pieces=lossless,  # else every column of indentation would be a token
            add_dummy_prefix=False,
            byte_fallback=True,
            split_digits=True,
            character_coverage=0.999,
            pad_id=0,
            bos_id=BOS_ID,
            eos_id=2,
            unk_id=3,
            max_sentence_length=4 * _SENTENCE_CHARS,  # bytes; longer sentences would be left out
            minloglevel=2,
        )
    except RuntimeError as error:
        why = str(error).rpartition("] ")[2].split(". Increase")[0] or "the text is empty"
        raise Problem(f"cannot train {vocab} pieces: {why}; change vocab or give more text") from error
    write_bytes(path, model.getvalue())


def refuse_vocab(vocab):
    """Raises Problem for a number of pieces that no tokenizer can be trained to."""
    if not 260 < vocab <= 65536:
        raise Problem(f"vocab {vocab} is not possible: 260 ids are bytes and controls, and shards hold ids below 65,536")


def _even_sample(documents, budget):
    """Every k-th piece of the stream, k the smallest power of two that fits `budget` bytes: one pass, bounded memory."""
    kept, size, step = [], 0, 1
    pieces = (text[at : at + _SENTENCE_CHARS] for text in documents for at in range(0, len(text), _SENTENCE_CHARS))
    for index, piece in enumerate(pieces):
        if index % step:
            continue
        kept.append(piece)
        size += len(piece.encode())
        while size > budget and len(kept) > 1:
            kept, step = kept[::2], 2 * step
            size = sum(len(piece.encode()) for piece in kept)
    return kept


def load_tokenizer(path):
    """The SentencePieceProcessor of a .model file. Raises Problem when it is absent, broken or has another BOS id than 1."""
    if not Path(path).is_file():
        raise Problem(f"tokenizer {path} is not there; `fairway data build` writes one, or name a SentencePiece .model file")
    try:
        tokenizer = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise Problem(f"{path} is not a SentencePiece model ({error}); fetch or train it again") from error
    if tokenizer.bos_id() != BOS_ID or tokenizer.vocab_size() > 65536:
        raise Problem(
            f"tokenizer {path} has BOS id {tokenizer.bos_id()} and {tokenizer.vocab_size()} pieces, not id {BOS_ID} and at "
            "most 65,536; train another"
        )
    return tokenizer


def encode_documents(tokenizer, texts, num_threads=None):
    """Token ids, one uint16 array [1 + n] a text: BOS, then the text without its leading spaces.

    A space right after BOS has no bytes in the byte table (its predecessor is a boundary), so it must not be there;
    U+2581 goes too, since SentencePiece takes it for a space. This is the only place that strips them.
    """
    texts = [text.lstrip(" " + SPACE_PIECE) for text in texts]
    rows = tokenizer.encode(texts, add_bos=True, num_threads=num_threads or os.cpu_count())
    return [np.array(row, np.uint16) for row in rows]
