import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer

from fairway.data.tokenizer import encode_documents, load_tokenizer, train_tokenizer
from fairway.problem import Problem

WORDS = ("return", "the", "self", "value", "for", "each", "line", "import", "class", "number", "text", "not")


def _code(i, j):
    word, other = WORDS[(i + j) % len(WORDS)], WORDS[i * j % len(WORDS)]
    return f"def f{i * j}(x):\n    if x > {i}:\n        return {word}  # {other}\n"


CORPUS = ["".join(_code(i, j) for j in range(40)) for i in range(40)]


@pytest.fixture(scope="module", params=["nmt_nfkc", "identity"])
def trained(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(CORPUS, 400, path, request.param)
    return request.param, path


def test_training_twice_gives_the_same_bytes_and_the_contests_ids(trained, tmp_path, capfd):
    normalization, path = trained
    train_tokenizer(iter(CORPUS), 400, tmp_path / "again.model", normalization)
    assert (tmp_path / "again.model").read_bytes() == path.read_bytes()
    assert capfd.readouterr() == ("", "")
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_size() == 400
    assert (tokenizer.pad_id(), tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.unk_id()) == (0, 1, 2, 3)
    assert all(tokenizer.is_byte(token) for token in range(4, 260))
    assert len(tokenizer.encode("123", out_type=str)) >= 3  # digits stand alone


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_identity_loses_nothing(identity, text):
    (ids,) = encode_documents(identity, [text])
    assert ids[0] == 1 and identity.decode(ids.tolist()) == text.lstrip(" ")


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    path = tmp_path_factory.mktemp("identity") / "tokenizer.model"
    train_tokenizer(CORPUS, 400, path, "identity")
    return load_tokenizer(path)


def test_identity_keeps_code_and_spends_one_token_on_an_indentation(identity):
    text = "\n\tdef f(x):\r\n        return  x  \n"
    (ids,) = encode_documents(identity, [text])
    assert identity.decode(ids.tolist()) == text
    assert identity.encode("        ", out_type=str) == ["\u2581" * 8]


def test_documents_begin_with_bos_and_no_space_and_threads_do_not_matter(trained):
    tokenizer = load_tokenizer(trained[1])
    texts = ["  \u2581 the", "", "the", *CORPUS]
    one, four = (encode_documents(tokenizer, texts, num_threads=n) for n in (1, 4))
    assert all(np.array_equal(a, b) and a.dtype == np.uint16 and a[0] == 1 for a, b in zip(one, four, strict=True))
    assert one[0].tolist() == one[2].tolist() and one[1].tolist() == [1]
    assert encode_documents(tokenizer, []) == []


def test_the_sample_is_spread_over_the_corpus(tmp_path):
    # Only the second half has the word; a sample from the head would not know it.
    texts = ["abcd efgh " * 400] * 30 + ["zyxwvuts " * 400] * 30
    train_tokenizer(texts, 291, tmp_path / "a.model", sample_bytes=30_000)
    tokenizer = load_tokenizer(tmp_path / "a.model")
    assert len(tokenizer.encode("a zyxwvuts")) <= 3 and len(tokenizer.encode("a efgh")) <= 3


def test_one_long_document_is_used_whole(tmp_path):
    # The trainer leaves out sentences over a length, which here would be all of the text.
    train_tokenizer(["".join(CORPUS)], 400, tmp_path / "a.model")
    assert len(load_tokenizer(tmp_path / "a.model").encode("return the value")) <= 5


def test_what_cannot_be_trained_or_loaded_is_one_line_and_leaves_no_file(tmp_path):
    path = tmp_path / "a.model"
    for texts, vocab, normalization, says in [
        (["hello"], 5000, "nmt_nfkc", "cannot train 5000 pieces: Vocabulary size too high"),
        (CORPUS, 270, "nmt_nfkc", "smaller than required"),
        ([], 400, "nmt_nfkc", "the text is empty"),
        (CORPUS, 100, "nmt_nfkc", "vocab 100"),
        (CORPUS, 70000, "nmt_nfkc", "vocab 70000"),
        (CORPUS, 400, "nfd", "unknown normalization"),
    ]:
        with pytest.raises(Problem, match=says) as caught:
            train_tokenizer(texts, vocab, path, normalization)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(Problem, match="not there"):
        load_tokenizer(path)
    for data in (b"", b"garbage" * 50):
        path.write_bytes(data)
        with pytest.raises(Problem, match="not a SentencePiece model"):
            load_tokenizer(path)


@pytest.mark.parametrize("bos", [-1, 2])
def test_a_tokenizer_whose_documents_begin_with_another_id_is_refused(tmp_path, bos):
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="bpe", vocab_size=400, byte_fallback=True,
        pad_id=0, unk_id=1, bos_id=bos, eos_id=3, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "other.model").write_bytes(model.getvalue())
    with pytest.raises(Problem, match=rf"other\.model has BOS id {bos} and 400 pieces, not id 1"):
        load_tokenizer(tmp_path / "other.model")
