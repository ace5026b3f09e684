"""The noise is what it says: its entropy, its bytes and its places are counted here in other ways."""

import math
from itertools import pairwise

import numpy as np
import pytest

from fairway.data.tokenizer import load_tokenizer
from fairway.referee.streams import (
    ONE_IN_A_MILLION,
    balanced_law,
    doubled_law,
    foreign_law,
    narrow_law,
    noise_stream,
    noise_tokenizer,
    read_alphabet,
    repeated_stream,
    wide_law,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("noise") / "512.model"
    noise_tokenizer(path, 512)
    return path


@pytest.fixture(scope="module")
def alphabet(model):
    return read_alphabet(model)


@pytest.mark.parametrize("law", [wide_law, narrow_law, doubled_law, foreign_law, balanced_law])
def test_decoding_gives_as_many_bytes_as_the_table(law, model, alphabet):
    """Documents one by one, as SentencePiece takes them; noise is valid UTF-8 wherever it is cut by BOS."""
    tokenizer, stream = load_tokenizer(model), noise_stream(alphabet, law(alphabet), 6000, 3)
    starts = [*np.flatnonzero(stream.tokens == 1), len(stream.tokens)]
    assert starts[0] == 0 and len(starts) > 4 and len(stream.tokens) == 6001
    counted = 0
    for begin, end in pairwise(starts):
        text = tokenizer.decode(stream.tokens[begin + 1 : end].tolist())
        assert law is foreign_law or "\ufffd" not in text
        counted += len(text.encode())
    if law is foreign_law:  # the last character may be cut at the stream's own end
        assert abs(counted - stream.bytes_N.sum()) <= 2
    else:
        assert counted == stream.bytes_N.sum()


def test_a_narrow_stream_has_the_same_bytes_for_each_token(alphabet):
    stream = noise_stream(alphabet, narrow_law(alphabet), 3000, 1)
    inside = (stream.tokens[1:] != 1) & (stream.tokens[:-1] != 1)
    assert len(alphabet.narrow) == 16 and len(set(stream.bytes_N[inside])) == 1


def test_the_floor_is_the_entropy_of_the_free_tokens(alphabet):
    stream = noise_stream(alphabet, wide_law(alphabet), 5000, 2)
    free = int((stream.tokens[1:] != 1).sum())
    assert stream.entropy() == pytest.approx(free * math.log(len(alphabet.plain)) / 5000)
    assert stream.floor() == pytest.approx(stream.entropy() - ONE_IN_A_MILLION / 5000)
    assert stream.floor(tail=500) <= stream.floor()
    assert noise_stream(alphabet, doubled_law(alphabet), 5000, 2).entropy() < 0.51 * stream.entropy()


def test_no_code_that_sums_to_one_goes_below_the_floor(alphabet):
    """A code that learns as it goes, and knows the law, over many streams."""
    for seed in range(40):
        stream = noise_stream(alphabet, narrow_law(alphabet), 400, seed)
        seen, nats = dict.fromkeys(alphabet.narrow.tolist(), 0.05), 0.0
        for token in stream.tokens[1:].tolist():
            if token != 1:
                nats -= math.log(seen[token] / sum(seen.values()))
                seen[token] += 1
        assert nats / 400 > stream.floor()


def test_equal_seeds_give_equal_tokens_but_in_the_patches(alphabet):
    spans = ((500, 900), (2600, 3001))
    plain = noise_stream(alphabet, narrow_law(alphabet), 3000, 9)
    patched = noise_stream(alphabet, narrow_law(alphabet), 3000, 9, foreign_law(alphabet), spans)
    other = np.zeros(3001, bool)
    for begin, end in spans:
        other[begin:end] = True
    other &= plain.tokens != 1
    assert np.array_equal(plain.tokens != patched.tokens, other)
    assert np.array_equal(patched.patched_N, other[1:])
    assert not set(patched.tokens[other].tolist()) & set(alphabet.narrow.tolist())


def test_the_bytes_of_every_cut_of_the_tail_are_within_what_is_allowed(alphabet):
    stream = noise_stream(alphabet, wide_law(alphabet), 2000, 4)
    least, most = stream.bytes_each(100)
    means = [stream.bytes_N[:count].mean() for count in range(1900, 2001)]
    assert (least, most) == (pytest.approx(min(means)), pytest.approx(max(means)))


def test_balanced_noise_holds_each_id_equally_often_and_repeated_noise_repeats(alphabet):
    tokens, _ = balanced_law(alphabet)(160, np.random.default_rng(0))
    assert set(np.unique(tokens, return_counts=True)[1]) == {10}
    stream = repeated_stream(alphabet, wide_law, 4096, 5)
    assert stream.targets == 4096 and np.array_equal(stream.tokens[:2048], stream.tokens[2048:4096])
