from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.data.bytetable import byte_table
from fairway.data.tokenizer import encode_documents, load_tokenizer, train_tokenizer
from fairway.problem import Problem

CONTEST = Path(__file__).parents[2].parent / "shared" / "tokenizers"
KINDS = ["nmt_nfkc", "identity", "fineweb_1024_bpe", "fineweb_8192_bpe"]
CORPUS = ["".join(f"if x{i}:\n        return the value of   {i * j}, été 漢字\n" for j in range(60)) for i in range(30)]
AWKWARD = (
    *("\u2581", "   ", "\n\n", "\t", "\r\n", "\x00", "<0x41>", "<s>", "<unk>", "the value", " of ", "12345", "\ufeff"),
    *(
        "\U0001f600\u200d\U0001f680",
        "漢字かな",
        "e\u0301",
        "A\u0308 ",
        "\u3000",
        "\xa0",
        "\xa8",
        "\ufb01",
        "\ufdfa",
        "\u200b",
    ),
)
CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXT = st.lists(st.one_of(st.sampled_from(AWKWARD), st.text(CHARACTERS, max_size=6)), max_size=12)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Kind -> (tokenizer, table): two trained here, and the contest's two where they are."""
    folder = tmp_path_factory.mktemp("models")
    paths = {kind: CONTEST / f"{kind}.model" for kind in KINDS[2:]}
    for kind in KINDS[:2]:
        paths[kind] = folder / f"{kind}.model"
        train_tokenizer(CORPUS, 330, paths[kind], kind)
    tokenizers = {kind: load_tokenizer(path) for kind, path in paths.items() if path.is_file()}
    return {kind: (tokenizer, byte_table(tokenizer)) for kind, tokenizer in tokenizers.items()}


def _model(models, kind):
    if kind not in models:
        pytest.skip(f"the contest's {kind}.model is looked for in {CONTEST.parent.name}/{CONTEST.name} beside the checkout")
    return models[kind]


def _decoded(tokenizer, ids):
    """Bytes of the text between control and unknown ids, decoded run by run: it knows nothing of the table."""
    total, run = 0, []
    for token in [*ids, tokenizer.bos_id()]:
        if tokenizer.is_control(token) or tokenizer.is_unknown(token):
            total += len(tokenizer.decode(run).encode())
            run = []
        else:
            run.append(token)
    return total


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(documents=st.lists(TEXT.map("".join), min_size=1, max_size=3))
def test_the_table_counts_what_decoding_gives(models, kind, documents):
    tokenizer, table = _model(models, kind)
    ids = np.concatenate(encode_documents(tokenizer, documents, num_threads=1)).astype(int)
    counts = table.counts(ids[:-1], ids[1:])
    assert counts.sum() == _decoded(tokenizer, ids.tolist())
    if tokenizer.unk_id() not in ids:
        each = [tokenizer.decode(row.tolist()) for row in encode_documents(tokenizer, documents, num_threads=1)]
        assert counts.sum() == sum(len(text.encode()) for text in each)


@pytest.mark.parametrize("kind", ["identity"])
@settings(max_examples=100, deadline=None)
@given(text=TEXT.map("".join))
def test_without_normalisation_the_count_is_the_original_texts(models, kind, text):
    tokenizer, table = _model(models, kind)
    (ids,) = encode_documents(tokenizer, [text], num_threads=1)
    original = text.lstrip(" \u2581").replace("\u2581", " ")
    assert table.counts(ids[:-1], ids[1:]).sum() == len(original.encode())


def test_the_rules_one_by_one(models):
    tokenizer, table = models["nmt_nfkc"]
    the, bos, byte, space = tokenizer.piece_to_id("\u2581the"), 1, 4 + 0xE6, tokenizer.piece_to_id("\u2581")
    x = np.array([byte, bos, 3, the, the, byte, bos])
    y = np.array([the, the, the, bos, byte, space, space])
    assert table.counts(x, y).tolist() == [4, 3, 3, 0, 1, 1, 0]
    assert table.base.dtype == np.int16 and table.leading_space.dtype == table.boundary.dtype == bool
    assert table.boundary.nonzero()[0].tolist() == [0, 1, 2, 3]


def test_spaces_inside_a_piece_count_one_byte_each(models):
    tokenizer, table = models["identity"]
    inside = [token for token in range(tokenizer.vocab_size()) if "\u2581" in tokenizer.id_to_piece(token)[1:]]
    assert inside  # else this test says nothing
    for token in inside:
        assert table.counts(np.array([5]), np.array([token]))[0] == len(tokenizer.decode([5, token]).encode()) - len(
            tokenizer.decode([5]).encode()
        )


@pytest.mark.parametrize("kind", KINDS[2:])
def test_for_the_contests_models_the_contests_own_rule_gives_the_same_table(models, kind):
    tokenizer, table = _model(models, kind)
    for token in range(tokenizer.vocab_size()):
        piece = tokenizer.id_to_piece(token)
        if tokenizer.is_control(token) or tokenizer.is_unknown(token) or tokenizer.is_unused(token):
            expected = (0, False, True)
        elif tokenizer.is_byte(token):
            expected = (1, False, False)
        else:
            stripped = piece[1:] if piece.startswith("\u2581") else piece
            expected = (len(stripped.encode("utf-8")), piece.startswith("\u2581"), False)
        assert (table.base[token], table.leading_space[token], table.boundary[token]) == expected


def test_a_model_without_a_piece_for_the_space_is_refused(models):
    class Spaceless:
        def __getattr__(self, name):
            return getattr(models["identity"][0], name)

        def piece_to_id(self, piece):
            return 3

    with pytest.raises(Problem, match="no piece for a space"):
        byte_table(Spaceless())
