import constriction
import numpy as np
import pytest

from fairway.codec.rans import WHOLE, LaneReader, frequencies, log_weights, write_lanes
from fairway.problem import Problem


def static_section(rows=400, columns=64, tables=3, seed=0):
    """Rows of keys under `tables` Gaussian tables, a column's table being its number's remainder."""
    rng = np.random.default_rng(seed)
    table_C = np.arange(columns) % tables
    symbols = np.clip(np.rint(rng.normal(size=(rows, columns)) * (2 + table_C) + 128), 0, 255).astype(np.int64)
    counts = np.ones((tables, 256)) * (np.arange(256) == 128)
    np.add.at(counts, (table_C, symbols), 1)
    return symbols, table_C, counts


def encoded(symbols, table_C, counts, lanes):
    tables = frequencies(log_weights(counts))
    rows = list((table_C << 8 | symbols).astype(np.uint16))
    return tables, *write_lanes(rows, *(table.ravel() for table in tables), lanes)


def decoded(words, tail, tables, lanes, rows, table_C):
    reader, out = LaneReader(words, lanes, tables), []
    for left in range(rows, 0, -1):
        if left == tail:
            reader = reader.tail()
        out.append(reader.read(table_C) & 255)
    reader.finish()
    return np.array(out)


@pytest.mark.parametrize("lanes", [1, 2, 16, 64, 256])
@pytest.mark.parametrize("columns", [1, 63, 64, 65])
def test_any_number_of_lanes_gives_the_symbols_back(lanes, columns):
    symbols, table_C, counts = static_section(columns=columns)
    tables, words, tail = encoded(symbols, table_C, counts, lanes)
    assert (decoded(words, tail, tables, lanes, len(symbols), table_C) == symbols).all()


def test_every_table_sums_to_the_whole_and_holds_what_occurs():
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 9, (50, 256)) ** rng.integers(0, 9, (50, 1)) * (rng.random((50, 256)) < rng.random((50, 1)))
    counts[:, 7] += 1
    frequency, start = frequencies(log_weights(counts))
    assert (frequency.sum(1) == WHOLE).all() and ((frequency > 0) == (counts > 0)).all()
    assert (start[:, 1:] == frequency.cumsum(1)[:, :-1]).all()


def test_tables_sent_in_steps_of_a_twentieth_octave_cost_under_a_hundredth_of_a_percent():
    counts = static_section(rows=20_000)[2]
    share = counts / counts.sum(1, keepdims=True)
    entropy = -(share * np.log2(np.maximum(share, 1e-9))).sum(1)
    crossed = -(share * np.log2(np.maximum(frequencies(log_weights(counts))[0], 1e-9) / WHOLE)).sum(1)
    assert (crossed < entropy * 1.0002).all() and (crossed >= entropy).all()


def test_a_static_section_is_as_short_as_constrictions_coder_makes_it():
    symbols, table_C, counts = static_section(rows=2000)
    tables, words, _ = encoded(symbols, table_C, counts, 8)
    oracle = constriction.stream.stack.AnsCoder()
    for table in range(3):
        model = constriction.stream.model.Categorical(tables[0][table] / WHOLE, perfect=False)
        oracle.encode_reverse(symbols[:, table_C == table].ravel().astype(np.int32), model)
    assert abs(2 * len(words) / (oracle.num_bits() / 8) - 1) < 0.001


def test_where_the_encoder_began_a_lane_costs_under_two_bytes():
    symbols, table_C, counts = static_section(rows=200, columns=128)
    sizes = [2 * len(encoded(symbols, table_C, counts, lanes)[1]) for lanes in (1, 128)]
    assert sizes[1] - sizes[0] < 2 * 127


@pytest.mark.parametrize("lanes", [1, 64])
def test_a_stream_cut_longer_or_with_one_word_changed_is_a_problem(lanes):
    symbols, table_C, counts = static_section(rows=40)
    tables, words, tail = encoded(symbols, table_C, counts, lanes)
    changed = [words[:-1], words[: 2 * lanes - 1], words[:0], np.append(words, np.uint16(0)), np.append(words, np.uint16(9))]
    for place in [*range(0, 2 * lanes, 2), *range(2 * lanes, len(words), len(words) // 20)]:
        changed.append(words.copy())
        changed[-1][place] ^= 1 << place % 16
    for wrong in changed:
        with pytest.raises(Problem):
            decoded(wrong, tail, tables, lanes, len(symbols), table_C)


def test_a_table_without_symbols_is_a_problem():
    with pytest.raises(Problem, match="without symbols"):
        frequencies(np.zeros((2, 256), np.uint8))


def test_only_zeros_may_be_left_and_only_where_the_second_stream_lies():
    tables = frequencies(log_weights(static_section()[2]))
    for word, padded, refused in ((0, True, False), (5, True, True), (0, False, True)):
        reader = LaneReader(np.array([0, 1, word], np.uint16), 1, tables, padded)
        if refused:
            with pytest.raises(Problem, match="does not end"):
                reader.finish()
        else:
            reader.finish()
